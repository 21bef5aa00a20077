#include "base/clock.h"

#include <gtest/gtest.h>

#include <limits>

namespace mayfly {
namespace {

TEST(Clock, the_monotonic_clock_does_not_go_back) {
  std::uint64_t last = kSystemClock.monotonic_ns();
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t now = kSystemClock.monotonic_ns();
    ASSERT_GE(now, last);
    last = now;
  }
}

TEST(ProcessStart, times_that_are_not_known_are_not_reported) {
  EXPECT_FALSE(startup_time_us({}, 5'000));
  EXPECT_FALSE(startup_cpu_time_us({.monotonic_us = 1, .cpu_us = {}, .parent_cpu_us = 7}, 5'000));
}

TEST(ProcessStart, wall_time_is_counted_from_the_start_that_was_given) {
  EXPECT_EQ(startup_time_us({.monotonic_us = 2, .cpu_us = {}, .parent_cpu_us = {}}, 5'999), 3U);
}

TEST(ProcessStart, cpu_time_includes_the_parents) {
  EXPECT_EQ(startup_cpu_time_us({.monotonic_us = {}, .cpu_us = 2, .parent_cpu_us = 10}, 5'000), 13U);
  EXPECT_EQ(startup_cpu_time_us({.monotonic_us = {}, .cpu_us = 2, .parent_cpu_us = {}}, 5'000), 3U);
}

TEST(ProcessStart, absurd_times_neither_underflow_nor_overflow) {
  constexpr auto kMax = std::numeric_limits<std::uint64_t>::max();
  EXPECT_EQ(startup_time_us({.monotonic_us = kMax, .cpu_us = {}, .parent_cpu_us = {}}, 5'000), 0U);
  EXPECT_EQ(startup_cpu_time_us({.monotonic_us = {}, .cpu_us = 0, .parent_cpu_us = kMax}, 5'000), kMax);
}

}  // namespace
}  // namespace mayfly
