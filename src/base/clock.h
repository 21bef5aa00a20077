// Clocks that tests can replace, and the start-up times of the process.
#pragma once

#include <cstdint>
#include <optional>

namespace mayfly {

// Where a component gets the time from; the functions are thread-safe and async-signal-safe. Nanoseconds.
struct Clock {
  std::uint64_t (*monotonic_ns)();  // CLOCK_MONOTONIC
  std::uint64_t (*realtime_ns)();   // CLOCK_REALTIME, since 1970-01-01 UTC
};

// The host's own.
std::uint64_t monotonic_ns();
std::uint64_t realtime_ns();
// CPU time that the process has used (CLOCK_PROCESS_CPUTIME_ID).
std::uint64_t process_cpu_ns();

inline constexpr Clock kSystemClock{monotonic_ns, realtime_ns};

// What a parent that started us (the jailer, a client) tells of the time before, in microseconds. All are
// optional: the flags may be absent.
struct ProcessStart {
  std::optional<std::uint64_t> monotonic_us;  // --start-time-us: CLOCK_MONOTONIC when the start was asked for
  std::optional<std::uint64_t> cpu_us;        // --start-time-cpu-us: our process CPU time at that point
  std::optional<std::uint64_t> parent_cpu_us;  // --parent-cpu-time-us: what the parent spent on it
};

// Times from the start to now, or nothing where the start is not known. A start in the future gives 0: a
// caller may have passed anything.
std::optional<std::uint64_t> startup_time_us(const ProcessStart& start, std::uint64_t now_monotonic_ns);
std::optional<std::uint64_t> startup_cpu_time_us(const ProcessStart& start, std::uint64_t now_cpu_ns);

}  // namespace mayfly
