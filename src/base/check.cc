#include "base/check.h"

#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>

#include "base/line_sink.h"
#include "base/metrics.h"
#include "base/source_path.h"
#include "base/text.h"

namespace mayfly {

void check_failed(const char* file, int line, const char* condition, const char* why) noexcept {
  std::array<char, kAtomicLine> storage{};
  TextBuffer text(storage);
  text.append(source_path(file));
  text.append(':');
  text.append_decimal(static_cast<std::uint64_t>(line));
  text.append(": check failed: ");
  text.append(condition);
  text.append(": ");
  text.append(why);
  text.append('\n');
  write_shared(STDERR_FILENO, text.view());
  metrics().vmm.panic_count.set(1);
  metrics().flush_from_signal();
  std::abort();
}

}  // namespace mayfly
