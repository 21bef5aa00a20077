#include "json/parse_json.h"

#include <functional>
#include <set>
#include <string>
#include <vector>

namespace mayfly {
namespace {

using nlohmann::json;

// Watches the parser for what nlohmann::json accepts and this project does not.
class StrictnessWatch {
 public:
  explicit StrictnessWatch(int max_levels) : max_levels_(max_levels) {}

  bool operator()(int depth, json::parse_event_t event, const json& parsed) {
    const bool starts =
        event == json::parse_event_t::object_start || event == json::parse_event_t::array_start;
    if (starts && depth >= max_levels_) {
      complain("nested more than " + std::to_string(max_levels_) + " levels deep");
    }
    if (event == json::parse_event_t::object_start) {
      keys_.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys_.pop_back();
    } else if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_.back().insert(key).second) {
        complain("field \"" + key + "\" is given twice");
      }
    }
    return true;
  }

  const std::string& complaint() const { return complaint_; }

 private:
  void complain(std::string text) {
    if (complaint_.empty()) {
      complaint_ = std::move(text);
    }
  }

  const int max_levels_;
  std::vector<std::set<std::string>> keys_;
  std::string complaint_;
};

// nlohmann's texts begin with "[json.exception.parse_error.101] parse error at line 1, column 2: ".
std::string without_tag(std::string_view text) {
  const auto end = text.find("] ");
  return std::string(end == std::string_view::npos ? text : text.substr(end + 2));
}

}  // namespace

Result<json> parse_json(std::string_view text, std::string_view name, int max_levels) {
  StrictnessWatch watch(max_levels);
  try {
    json value = json::parse(text, std::ref(watch));
    if (!watch.complaint().empty()) {
      return fail(ErrorCode::kInvalidArgument, std::string(name) + ": " + watch.complaint());
    }
    return value;
  } catch (const json::exception& exception) {
    return fail(ErrorCode::kInvalidArgument,
                std::string(name) + ": not JSON: " + without_tag(exception.what()));
  }
}

}  // namespace mayfly
