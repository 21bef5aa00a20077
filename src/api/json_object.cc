#include "api/json_object.h"

#include <algorithm>

#include "json/parse_json.h"

namespace mayfly::api {
namespace {

using nlohmann::json;

// More than any section has.
constexpr int kMaxLevels = 32;

}  // namespace

Result<json> parse_json(std::string_view text, std::string_view name) {
  return mayfly::parse_json(text, name, kMaxLevels);
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
  return text_of(key, *found);
}

std::optional<std::string> JsonObject::text_of(std::string_view key, const json& value) {
  const auto& text = value.get_ref<const std::string&>();
  if (text.find('\0') != std::string::npos) {
    refuse(key, "must not contain a NUL character");
    return std::nullopt;
  }
  return text;
}

std::optional<std::vector<std::string>> JsonObject::strings(std::string_view key, std::string_view what) {
  const json* found = find(key);
  if (found == nullptr) {
    return std::nullopt;
  }
  if (!found->is_array() || !std::ranges::all_of(*found, &json::is_string)) {
    refuse(key, "must be a list of " + std::string(what));
    return std::nullopt;
  }
  std::vector<std::string> all;
  for (const json& each : *found) {
    auto text = text_of(key, each);
    if (!text) {
      return std::nullopt;
    }
    all.push_back(std::move(*text));
  }
  return all;
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
