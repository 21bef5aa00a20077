// An always-on check of an invariant of ours. A guest or an API caller must never be able to make one fail.
#pragma once

namespace mayfly {

// Writes "<file>:<line>: check failed: <condition>: <why>" to stderr, and a last line of metrics with
// vmm.panic_count set, and aborts. Neither waits: what a stalled terminal or pipe does not take is left out.
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const char* why) noexcept;

}  // namespace mayfly

#define MAYFLY_CHECK(condition, why)                               \
  do {                                                             \
    if (!(condition)) [[unlikely]] {                               \
      ::mayfly::check_failed(__FILE__, __LINE__, #condition, why); \
    }                                                              \
  } while (false)
