#include "vmm/event_line.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <thread>

namespace mayfly {
namespace {

// What KVM would see: the signals since the last look.
std::uint64_t signals(const EventLine& line) {
  std::uint64_t count = 0;
  if (::read(line.event().get(), &count, sizeof count) != sizeof count) {
    EXPECT_EQ(errno, EAGAIN);
    return 0;
  }
  return count;
}

TEST(EventLine, a_line_that_nobody_triggered_is_quiet) {
  const auto line = EventLine::create();
  ASSERT_TRUE(line.has_value());
  EXPECT_EQ(signals(*line), 0U);
}

TEST(EventLine, every_trigger_is_a_signal_of_its_event) {
  auto line = EventLine::create();
  ASSERT_TRUE(line.has_value());
  line->trigger();
  EXPECT_EQ(signals(*line), 1U);
  EXPECT_EQ(signals(*line), 0U);
}

TEST(EventLine, triggers_of_many_threads_are_all_counted_and_none_blocks) {
  auto line = EventLine::create();
  ASSERT_TRUE(line.has_value());
  std::array<std::thread, 4> threads;
  for (auto& thread : threads) {
    thread = std::thread([&line] {
      for (int i = 0; i < 1000; ++i) {
        line->trigger();
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(signals(*line), 4000U);
}

TEST(EventLine, a_line_that_moved_keeps_its_event) {
  auto line = EventLine::create();
  ASSERT_TRUE(line.has_value());
  EventLine moved = std::move(*line);
  moved.trigger();
  EXPECT_EQ(signals(moved), 1U);
}

}  // namespace
}  // namespace mayfly
