#include "devices/power/power.h"

#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <random>
#include <vector>

#include "support/bus_access.h"
#include "support/recording_sink.h"

namespace mayfly {
namespace {

struct Rig {
  testing::RecordingSink sink;
  PowerLine line{sink};
  PowerDevice device{line};

  std::uint8_t read(std::uint64_t offset) { return testing::read_byte(device, offset); }
  void write(std::uint64_t offset, std::uint8_t value) { testing::write_byte(device, offset, value); }
};

// The registers as ACPI 6.5, 4.8.3.6 and 4.8.3.7 describe them, in numbers of their own.
struct Model {
  PowerState state;
  std::optional<PowerEvent> event;
  PowerCounters counters;

  void write(std::uint64_t offset, std::uint8_t value) {
    ++counters.write_count;
    if (offset == 0) {
      state.sleep_type = (value >> 2) & 7;
      if ((value & 0x20) != 0 && state.sleep_type == 5) {
        ++counters.power_off_count;
        event = event.value_or(PowerEvent::kPowerOff);
      } else if ((value & 0x20) != 0) {
        ++counters.error_count;
        state.wake_status = true;
      }
    } else if (offset == 1) {
      state.wake_status = state.wake_status && (value & 0x80) == 0;
    } else if (value == 1) {
      ++counters.reset_count;
      event = event.value_or(PowerEvent::kReset);
    } else {
      ++counters.error_count;
    }
  }
  std::uint8_t read(std::uint64_t offset) {
    ++counters.read_count;
    switch (offset) {
      case 0:
        return static_cast<std::uint8_t>(state.sleep_type << 2);
      case 1:
        return state.wake_status ? 0x80 : 0;
      default:
        return 0;
    }
  }
};

TEST(Power, every_value_of_every_register_in_every_state_does_as_the_specification_says) {
  for (int type = 0; type < 8; ++type) {
    for (const bool awake : {false, true}) {
      for (std::uint64_t offset = 0; offset < PowerDevice::kSize; ++offset) {
        for (int value = 0; value < 256; ++value) {
          Rig rig;
          Model model;
          model.state = {.sleep_type = static_cast<std::uint8_t>(type), .wake_status = awake};
          rig.device.set_state(model.state);
          rig.write(offset, static_cast<std::uint8_t>(value));
          model.write(offset, static_cast<std::uint8_t>(value));
          ASSERT_EQ(rig.device.state(), model.state) << "register " << offset << ", value " << value;
          ASSERT_EQ(rig.line.requested(), model.event) << "register " << offset << ", value " << value;
          for (std::uint64_t read = 0; read < PowerDevice::kSize; ++read) {
            ASSERT_EQ(rig.read(read), model.read(read));
          }
          ASSERT_EQ(rig.device.state(), model.state) << "reading changed the state";
          ASSERT_EQ(rig.device.counters(), model.counters);
        }
      }
    }
  }
}

TEST(Power, accesses_that_are_not_a_byte_reach_no_register) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{2}, std::size_t{4}, std::size_t{8}}) {
    for (std::uint64_t offset = 0; offset < PowerDevice::kSize; ++offset) {
      for (int value = 0; value < 256; ++value) {
        Rig rig;
        const std::vector<std::uint8_t> written(size, static_cast<std::uint8_t>(value));
        std::vector<std::uint8_t> read(size, 0x5a);
        rig.device.bus_write(offset, written);
        rig.device.bus_read(offset, read);
        ASSERT_EQ(read, std::vector<std::uint8_t>(size, 0xff));
        ASSERT_EQ(rig.device.state(), PowerState{});
        ASSERT_TRUE(rig.sink.events.empty());
        PowerCounters expected;
        expected.missed_read_count = expected.missed_write_count = 1;
        ASSERT_EQ(rig.device.counters(), expected);
      }
    }
  }
}

TEST(Power, offsets_beyond_the_registers_reach_none) {
  for (const std::uint64_t offset : {std::uint64_t{3}, std::uint64_t{0x100}, std::uint64_t{0x10000},
                                     std::uint64_t{1} << 32, ~std::uint64_t{0}}) {
    Rig rig;
    rig.write(offset, 0x35);
    EXPECT_EQ(rig.read(offset), 0xff);
    EXPECT_EQ(rig.device.state(), PowerState{});
    EXPECT_EQ(rig.device.counters().missed_write_count, 1U);
  }
}

// What an operating system's soft-off does: clear WAK_STS, then SLP_TYP and SLP_EN in one write.
TEST(Power, soft_off_sequence_powers_off_once) {
  Rig rig;
  rig.write(PowerDevice::kSleepStatus, 0x80);
  rig.write(PowerDevice::kSleepControl, 0x34);
  EXPECT_EQ(rig.read(PowerDevice::kSleepStatus), 0) << "a machine that is off does not wake";
  rig.write(PowerDevice::kSleepControl, 0x34);
  rig.write(PowerDevice::kReset, 1);
  EXPECT_EQ(rig.sink.events, std::vector{PowerEvent::kPowerOff});
}

TEST(Power, random_interleavings_follow_the_model) {
  std::mt19937 random(20240607);  // the same sequence every time
  for (int round = 0; round < 200; ++round) {
    Rig rig;
    Model model;
    for (int step = 0; step < 200; ++step) {
      const std::uint64_t offset = random() % PowerDevice::kSize;
      const auto value = static_cast<std::uint8_t>(random());
      if (random() % 2 == 0) {
        rig.write(offset, value);
        model.write(offset, value);
      } else {
        ASSERT_EQ(rig.read(offset), model.read(offset));
      }
      ASSERT_EQ(rig.device.state(), model.state);
      ASSERT_EQ(rig.line.requested(), model.event);
      ASSERT_LE(rig.sink.events.size(), 1U);
    }
    ASSERT_EQ(rig.device.counters(), model.counters);
  }
}

TEST(Power, state_carries_over_to_another_device) {
  Rig from;
  from.write(PowerDevice::kSleepControl, 0x2c);
  Rig to;
  to.device.set_state(from.device.state());
  EXPECT_EQ(to.device.state(), from.device.state());
  EXPECT_EQ(to.read(PowerDevice::kSleepControl), 0x0c);
  EXPECT_EQ(to.read(PowerDevice::kSleepStatus), 0x80);
  EXPECT_TRUE(to.sink.events.empty()) << "restoring asks for nothing";
}

TEST(Power, state_with_bits_that_the_register_lacks_loses_them) {
  Rig rig;
  rig.device.set_state({.sleep_type = 0xfd, .wake_status = false});
  EXPECT_EQ(rig.read(PowerDevice::kSleepControl), 0x14);
}

}  // namespace
}  // namespace mayfly
