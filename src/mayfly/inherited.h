// What the process was started with, and is told to use or not.
#pragma once

#include <span>
#include <vector>

#include "base/result.h"

namespace mayfly {

// 0 to 2 and the descriptors that the arguments name as files, anywhere in them: /dev/fd/N, /proc/self/fd/N.
// Ascending.
std::vector<int> named_descriptors(std::span<const char* const> arguments);

// Closes every other one: whoever starts a microVM may have left anything open, for which a guest that breaks
// out has a use. Those that are kept are closed in programs that this one starts. To be called before any is
// opened.
Result<void> close_inherited(std::span<const char* const> arguments);

}  // namespace mayfly
