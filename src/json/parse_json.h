// JSON from a text, strictly.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "base/result.h"

namespace mayfly {

// Parses `text` as one JSON value. Refused as kInvalidArgument: syntax errors (with line and column), numbers
// out of range, a key given twice in one object, more than `max_levels` of objects and lists in each other,
// anything behind the value. Never throws. `name` is what errors call the text.
Result<nlohmann::json> parse_json(std::string_view text, std::string_view name, int max_levels);

}  // namespace mayfly
