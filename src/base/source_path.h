// The name of a source file as logs and failed checks show it.
#pragma once

#include <string_view>

namespace mayfly {

// `file` (as __FILE__ gives it: relative to the project's root, or to the build's folder where a compiler cache
// has rewritten it) below src/, where it is there.
constexpr const char* source_path(const char* file) {
  while (std::string_view(file).starts_with("../")) {
    file += 3;
  }
  return std::string_view(file).starts_with("src/") ? file + 4 : file;
}

}  // namespace mayfly
