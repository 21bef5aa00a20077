#include "devices/i8042/i8042.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

#include "support/bus_access.h"
#include "support/recording_sink.h"

namespace mayfly {
namespace {

struct Rig {
  testing::RecordingSink sink;
  PowerLine line{sink};
  I8042 device{line};

  // Ports as the guest knows them.
  BusDevice& port(int number) { return number == 0x64 ? device.command_port() : device.data_port(); }
  std::uint8_t in(int number) { return testing::read_byte(port(number), 0); }
  void out(int number, std::uint8_t value) { testing::write_byte(port(number), 0, value); }
};

bool resets(int port, int value) {
  return port == 0x64 && value >= 0xf0 && value % 2 == 0;
}

TEST(I8042, every_byte_to_every_port_resets_or_is_ignored) {
  for (const int port : {0x60, 0x64}) {
    for (int value = 0; value < 256; ++value) {
      Rig rig;
      rig.out(port, static_cast<std::uint8_t>(value));
      ASSERT_EQ(rig.sink.events.size(), resets(port, value) ? 1U : 0U) << "value " << value;
      const bool pulse_without_reset = port == 0x64 && value >= 0xf0 && value % 2 == 1;
      I8042Counters expected;
      expected.write_count = 1;
      expected.reset_count = resets(port, value) ? 1U : 0U;
      expected.error_count = resets(port, value) || pulse_without_reset ? 0U : 1U;
      ASSERT_EQ(rig.device.counters(), expected) << "value " << value;
      ASSERT_EQ(rig.in(0x60), 0xff);
      ASSERT_EQ(rig.in(0x64), 0x01);
    }
  }
}

TEST(I8042, accesses_that_are_not_a_byte_reach_no_register) {
  for (const int port : {0x60, 0x64}) {
    for (const std::size_t size : {std::size_t{0}, std::size_t{2}, std::size_t{4}, std::size_t{8}}) {
      for (int value = 0; value < 256; ++value) {
        Rig rig;
        const std::vector<std::uint8_t> written(size, static_cast<std::uint8_t>(value));
        std::vector<std::uint8_t> read(size, 0x5a);
        rig.port(port).bus_write(0, written);
        rig.port(port).bus_read(0, read);
        ASSERT_EQ(read, std::vector<std::uint8_t>(size, 0xff));
        ASSERT_TRUE(rig.sink.events.empty());
        I8042Counters expected;
        expected.missed_read_count = expected.missed_write_count = 1;
        ASSERT_EQ(rig.device.counters(), expected);
      }
    }
  }
}

TEST(I8042, offsets_beyond_a_port_reach_nothing) {
  Rig rig;
  for (const std::uint64_t offset : {std::uint64_t{1}, std::uint64_t{4}, std::uint64_t{1} << 32}) {
    testing::write_byte(rig.device.command_port(), offset, 0xfe);
    EXPECT_EQ(testing::read_byte(rig.device.command_port(), offset), 0xff);
  }
  EXPECT_TRUE(rig.sink.events.empty());
}

// The reset of a PC by way of its keyboard controller: wait until it is not busy, then pulse the line.
TEST(I8042, reset_path_waits_for_nothing) {
  Rig rig;
  EXPECT_EQ(rig.in(0x64) & 0x02, 0);
  rig.out(0x64, 0xfe);
  EXPECT_EQ(rig.line.requested(), PowerEvent::kReset);
  rig.out(0x64, 0xfe);
  EXPECT_EQ(rig.sink.events, std::vector{PowerEvent::kReset});
  EXPECT_EQ(rig.device.counters().reset_count, 2U);
}

// A probe that empties the buffer first never sees it empty, and so finds no controller.
TEST(I8042, buffer_never_runs_empty) {
  Rig rig;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_EQ(rig.in(0x64) & 0x01, 0x01);
    ASSERT_EQ(rig.in(0x60), 0xff);
  }
  EXPECT_EQ(rig.device.counters().read_count, 2000U);
}

TEST(I8042, random_interleavings_change_nothing_but_the_counters) {
  std::mt19937 random(19810812);  // the same sequence every time
  for (int round = 0; round < 200; ++round) {
    Rig rig;
    I8042Counters expected;
    for (int step = 0; step < 200; ++step) {
      const int port = random() % 2 == 0 ? 0x60 : 0x64;
      if (random() % 2 == 0) {
        ++expected.read_count;
        ASSERT_EQ(rig.in(port), port == 0x64 ? 0x01 : 0xff);
      } else {
        const auto value = static_cast<std::uint8_t>(random());
        rig.out(port, value);
        ++expected.write_count;
        expected.reset_count += resets(port, value) ? 1U : 0U;
        expected.error_count += port == 0x64 && value >= 0xf0 ? 0U : 1U;
      }
      ASSERT_EQ(rig.sink.events.size(), expected.reset_count > 0 ? 1U : 0U);
    }
    ASSERT_EQ(rig.device.counters(), expected);
  }
}

}  // namespace
}  // namespace mayfly
