#include "json/parse_json.h"

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <utility>
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

// What is wrong with a text that is not JSON, and where.
std::string describe(const json::parse_error& error, std::string_view text) {
  if (text.empty()) {
    return "it is empty";
  }
  // Counted from 1: the byte that cannot be there, or is the end of a word or text that cannot.
  const std::size_t at = std::min(std::max<std::size_t>(error.byte, 1), text.size() + 1) - 1;
  const std::string_view before = text.substr(0, at);
  const std::size_t line_start = before.rfind('\n') + 1;  // 0 in the first line
  const std::string place = "line " + std::to_string(std::ranges::count(before, '\n') + 1) + ", column " +
                            std::to_string(at - line_start + 1);
  if (at == text.size()) {
    return "it ends too early, at " + place;
  }
  // Told by nothing but the library's text.
  if (std::string_view(error.what()).find("UTF-8") != std::string_view::npos) {
    return "a byte at " + place + " is not UTF-8";
  }
  const char found = text[at];
  if (found < ' ' || found > '~') {
    return "a character that has to be escaped, or is out of place, at " + place;
  }
  return std::string("'") + found + "' is out of place at " + place +
         (found == '\'' ? "; texts are put into double quotes" : "");
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
  } catch (const json::parse_error& error) {
    return fail(ErrorCode::kInvalidArgument, std::string(name) + ": not JSON: " + describe(error, text));
  } catch (const json::exception&) {
    return fail(ErrorCode::kInvalidArgument, std::string(name) + ": a number is out of range");
  }
}

}  // namespace mayfly
