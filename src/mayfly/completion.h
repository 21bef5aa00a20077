// Completion of the command line for shells.
#pragma once

#include <string>
#include <string_view>

#include "mayfly/program_text.h"

namespace mayfly {

// The script for `shell`: "bash", "zsh" or "fish"; empty for another.
std::string completion_script(std::string_view shell, const ProgramText& text);

}  // namespace mayfly
