// Small text files, whole.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.h"

namespace mayfly {

// The contents of `path`, a file or FIFO of at most `limit` bytes; more is kOutOfRange. `role` names the file
// in errors.
Result<std::string> read_file(const std::string& path, std::string_view role, std::size_t limit);

}  // namespace mayfly
