#include "base/check.h"

#include <cstdio>
#include <cstdlib>

#include "base/source_path.h"

namespace mayfly {

void check_failed(const char* file, int line, const char* condition, const char* why) noexcept {
  std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", source_path(file), line, condition, why);
  std::abort();
}

}  // namespace mayfly
