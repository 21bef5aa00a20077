// The manual page mayfly(1), in roff with the macros of man(7).
#pragma once

#include <string>
#include <string_view>

#include "mayfly/program_text.h"

namespace mayfly {

std::string man_page(const ProgramText& text, std::string_view version);

}  // namespace mayfly
