// The name of a source file as logs and failed checks show it.
#pragma once

#include <string_view>

namespace mayfly {

// `file` below src/, where it is there. As __FILE__ gives it, it is relative to the project's root or, where
// a compiler cache makes paths relative, to the build's folder: "../../src/base/log.cc".
constexpr const char* source_path(const char* file) {
  const char* path = file;
  while (std::string_view(path).starts_with("../")) {
    path += 3;
  }
  return std::string_view(path).starts_with("src/") ? path + 4 : file;
}

static_assert(std::string_view(source_path("src/base/log.cc")) == "base/log.cc");
static_assert(std::string_view(source_path("../../src/base/log.cc")) == "base/log.cc");
static_assert(std::string_view(source_path("../other/log.cc")) == "../other/log.cc");

}  // namespace mayfly
