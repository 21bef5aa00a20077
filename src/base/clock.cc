#include "base/clock.h"

#include <ctime>
#include <limits>

namespace mayfly {
namespace {

// Async-signal-safe. The three clocks always exist: clock_gettime cannot fail for them.
std::uint64_t read_clock(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t elapsed(std::uint64_t from, std::uint64_t to) {
  return to > from ? to - from : 0;
}

}  // namespace

std::uint64_t monotonic_ns() {
  return read_clock(CLOCK_MONOTONIC);
}

std::uint64_t realtime_ns() {
  return read_clock(CLOCK_REALTIME);
}

std::uint64_t process_cpu_ns() {
  return read_clock(CLOCK_PROCESS_CPUTIME_ID);
}

std::optional<std::uint64_t> startup_time_us(const ProcessStart& start, std::uint64_t now_monotonic_ns) {
  if (!start.monotonic_us) {
    return std::nullopt;
  }
  return elapsed(*start.monotonic_us, now_monotonic_ns / 1000);
}

std::optional<std::uint64_t> startup_cpu_time_us(const ProcessStart& start, std::uint64_t now_cpu_ns) {
  if (!start.cpu_us) {
    return std::nullopt;
  }
  const std::uint64_t own = elapsed(*start.cpu_us, now_cpu_ns / 1000);
  const std::uint64_t parent = start.parent_cpu_us.value_or(0);
  const std::uint64_t room = std::numeric_limits<std::uint64_t>::max() - own;
  return own + (parent < room ? parent : room);
}

}  // namespace mayfly
