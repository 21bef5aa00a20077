#include "devices/virtio/queue/event_index.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>

namespace mayfly {
namespace {

// The rule as the specification words it: one of the entries before, before + 1, ... now - 1 is number
// `event`.
template <typename Index>
bool walk(Index event, Index before, Index now) {
  for (Index entry = before; entry != now; ++entry) {
    if (entry == event) {
      return true;
    }
  }
  return false;
}

TEST(EventIndex, eight_bits_all_there_is_as_the_walk) {
  for (unsigned before = 0; before < 256; ++before) {
    for (unsigned now = 0; now < 256; ++now) {
      for (unsigned event = 0; event < 256; ++event) {
        const auto e = static_cast<std::uint8_t>(event);
        const auto b = static_cast<std::uint8_t>(before);
        const auto n = static_cast<std::uint8_t>(now);
        ASSERT_EQ(passed_event(e, b, n), walk(e, b, n)) << event << " from " << before << " to " << now;
      }
    }
  }
}

TEST(EventIndex, sixteen_bits_around_every_border_as_the_walk) {
  constexpr std::array<int, 9> kSteps = {0, 1, 2, 3, 255, 256, 32767, 32768, 65535};
  for (const int start : {0, 1, 127, 255, 256, 32767, 32768, 65534, 65535}) {
    for (const int step : kSteps) {
      const auto before = static_cast<std::uint16_t>(start);
      const auto now = static_cast<std::uint16_t>(start + step);
      for (int near = -3; near <= 3; ++near) {
        for (const int around : {start, start + step, start + 32768}) {
          const auto event = static_cast<std::uint16_t>(around + near);
          ASSERT_EQ(passed_event(event, before, now), walk(event, before, now))
              << event << " from " << before << " to " << now;
        }
      }
    }
  }
}

TEST(EventIndex, example_of_the_specification_event_0_is_the_first_buffer_and_the_65536th_after) {
  EXPECT_TRUE(passed_event<std::uint16_t>(0, 0, 1));
  EXPECT_FALSE(passed_event<std::uint16_t>(0, 1, 65535));
  EXPECT_TRUE(passed_event<std::uint16_t>(0, 65535, 1));
}

}  // namespace
}  // namespace mayfly
