#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace mayfly {

void check_failed(const char* file, int line, const char* condition, const char* why) noexcept {
  std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", file + MAYFLY_SOURCE_ROOT_LENGTH, line, condition,
               why);
  std::abort();
}

}  // namespace mayfly
