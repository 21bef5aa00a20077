// What a person may have meant by an argument that there is none of.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "mayfly/program_text.h"

namespace mayfly {

// The one of `names` that `word` is likely a slip of: few letters wrong, missing, too many or swapped for its
// length, or its beginning alone. Empty where nothing is near enough; the nearest, and the first of these.
std::string_view nearest(std::string_view word, std::span<const std::string_view> names);

// The rest of a sentence about `word`, which is no argument of `command` (a subcommand's name, empty for the
// program itself): where it belongs, or what is spelled alike. Empty where there is nothing to say.
std::string suggestion(std::string_view word, std::string_view command, const ProgramText& program);

}  // namespace mayfly
