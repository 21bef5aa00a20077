#include "api/json_object.h"

#include <algorithm>
#include <vector>

namespace mayfly::api {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 32;

// Watches the parser for what nlohmann::json accepts and this project does not: keys given twice, deep
// nesting.
class StrictnessWatch {
 public:
  bool operator()(int depth, json::parse_event_t event, const json& parsed) {
    if (depth > kMaxDepth) {
      complain("nested more than " + std::to_string(kMaxDepth) + " levels deep");
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

  const std::optional<std::string>& complaint() const { return complaint_; }

 private:
  void complain(std::string text) {
    if (!complaint_) {
      complaint_ = std::move(text);
    }
  }

  std::vector<std::set<std::string>> keys_;
  std::optional<std::string> complaint_;
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

Result<json> parse_json(std::string_view text, std::string_view name) {
  StrictnessWatch watch;
  try {
    json value = json::parse(text, std::ref(watch));
    if (watch.complaint()) {
      return fail(ErrorCode::kInvalidArgument, std::string(name) + ": " + *watch.complaint());
    }
    return value;
  } catch (const json::parse_error& error) {
    return fail(ErrorCode::kInvalidArgument, std::string(name) + ": not JSON: " + describe(error, text));
  } catch (const json::exception&) {
    return fail(ErrorCode::kInvalidArgument, std::string(name) + ": a number is out of range");
  }
}

JsonObject::JsonObject(const json& value, std::string path) : value_(value), path_(std::move(path)) {
  if (!value_.is_object()) {
    error_ = Error(ErrorCode::kInvalidArgument, path_ + ": must be an object, is " + value_.type_name());
  }
}

const json* JsonObject::find(std::string_view key) {
  known_.emplace(key);
  if (error_ || !value_.is_object()) {
    return nullptr;
  }
  const auto found = value_.find(key);
  return found == value_.end() || found->is_null() ? nullptr : &*found;
}

void JsonObject::refuse(std::string_view key, std::string_view why) {
  if (!error_) {
    error_ = Error(ErrorCode::kInvalidArgument,
                   path_ + ": field \"" + std::string(key) + "\": " + std::string(why));
  }
}

void JsonObject::wrong_type(std::string_view key, std::string_view expected, const json& found) {
  refuse(key, "must be " + std::string(expected) + ", is " + found.type_name());
}

std::optional<std::string> JsonObject::string(std::string_view key) {
  const json* found = find(key);
  if (found == nullptr) {
    return std::nullopt;
  }
  if (!found->is_string()) {
    wrong_type(key, "a string", *found);
    return std::nullopt;
  }
  auto text = found->get<std::string>();
  if (text.find('\0') != std::string::npos) {
    refuse(key, "must not contain a NUL character");
    return std::nullopt;
  }
  return text;
}

std::optional<bool> JsonObject::boolean(std::string_view key) {
  const json* found = find(key);
  if (found == nullptr) {
    return std::nullopt;
  }
  if (!found->is_boolean()) {
    wrong_type(key, "true or false", *found);
    return std::nullopt;
  }
  return found->get<bool>();
}

std::optional<std::uint64_t> JsonObject::integer(std::string_view key, std::uint64_t minimum,
                                                 std::uint64_t maximum) {
  const json* found = find(key);
  if (found == nullptr) {
    return std::nullopt;
  }
  if (!found->is_number_integer()) {
    wrong_type(key, "an integer", *found);
    return std::nullopt;
  }
  // What the parser gives as unsigned is never negative; every other integer is.
  if (!found->is_number_unsigned() || found->get<std::uint64_t>() < minimum ||
      found->get<std::uint64_t>() > maximum) {
    refuse(key, found->dump() + " is not in " + std::to_string(minimum) + " to " + std::to_string(maximum));
    return std::nullopt;
  }
  return found->get<std::uint64_t>();
}

std::optional<std::size_t> JsonObject::choice(std::string_view key, std::span<const std::string_view> names) {
  const auto text = string(key);
  if (!text) {
    return std::nullopt;
  }
  std::string all;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (*text == names[i]) {
      return i;
    }
    all.append(i == 0 ? "" : ", ").append(names[i]);
  }
  refuse(key, "\"" + *text + "\" is not one of " + all);
  return std::nullopt;
}

const json* JsonObject::value(std::string_view key) {
  return find(key);
}

void JsonObject::require(std::string_view key) {
  if (!error_ && !missing_ && find(key) == nullptr) {
    missing_ = Error(ErrorCode::kInvalidArgument, path_ + ": field \"" + std::string(key) + "\" is missing");
  }
}

Result<void> JsonObject::finish() {
  if (!error_) {
    for (const auto& [key, unused] : value_.items()) {
      if (!known_.contains(key)) {
        const bool is_puts = std::ranges::find(put_only_, key) != put_only_.end();
        error_ = Error(ErrorCode::kInvalidArgument,
                       path_ + ": unknown field \"" + key + "\"" +
                           (is_puts ? " of a PATCH: only a PUT, before the start, can say it" : ""));
        break;
      }
    }
  }
  if (error_ || missing_) {
    return tl::make_unexpected(error_ ? *error_ : *missing_);
  }
  return {};
}

}  // namespace mayfly::api
