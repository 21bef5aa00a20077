#include "devices/bus/bus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace mayfly {
namespace {

constexpr std::uint64_t kLastAddress = std::numeric_limits<std::uint64_t>::max();

// Remembers the last access; reads answer with the offset of each byte.
class RecordingDevice : public BusDevice {
 public:
  void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) override {
    ++reads;
    last_offset = offset;
    for (std::size_t i = 0; i < data.size(); ++i) {
      data[i] = static_cast<std::uint8_t>(offset + i);
    }
  }
  void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) override {
    ++writes;
    last_offset = offset;
    written.assign(data.begin(), data.end());
  }
  int reads = 0;
  int writes = 0;
  std::uint64_t last_offset = 0;
  std::vector<std::uint8_t> written;
};

TEST(Bus, an_access_reaches_the_device_with_its_offset) {
  Bus bus("port");
  RecordingDevice serial;
  ASSERT_TRUE(bus.insert(0x3f8, 8, serial, "serial").has_value());
  std::array<std::uint8_t, 2> data{};
  EXPECT_TRUE(bus.read(0x3fd, data));
  EXPECT_EQ(data, (std::array<std::uint8_t, 2>{5, 6}));
  const std::array<std::uint8_t, 4> out{1, 2, 3, 4};
  EXPECT_TRUE(bus.write(0x3fc, out));
  EXPECT_EQ(serial.last_offset, 4U);
  EXPECT_EQ(serial.written, (std::vector<std::uint8_t>{1, 2, 3, 4}));
}

TEST(Bus, an_access_that_no_device_answers_reads_all_ones_and_drops_the_write) {
  Bus bus("port");
  std::array<std::uint8_t, 8> data{};
  EXPECT_FALSE(bus.read(0x80, data));
  EXPECT_TRUE(std::all_of(data.begin(), data.end(), [](std::uint8_t b) { return b == 0xff; }));
  EXPECT_FALSE(bus.write(0x80, data));
}

TEST(Bus, an_access_that_crosses_a_devices_edge_is_unknown_even_where_a_neighbour_begins) {
  Bus bus("mmio");
  RecordingDevice low;
  RecordingDevice high;
  ASSERT_TRUE(bus.insert(0x1000, 0x10, low, "low").has_value());
  ASSERT_TRUE(bus.insert(0x1010, 0x10, high, "high").has_value());
  std::array<std::uint8_t, 4> data{};
  EXPECT_FALSE(bus.read(0x100e, data));
  EXPECT_EQ(data, (std::array<std::uint8_t, 4>{0xff, 0xff, 0xff, 0xff}));
  EXPECT_FALSE(bus.write(0x0ffe, data));
  EXPECT_FALSE(bus.write(0x101e, data));
  EXPECT_EQ(low.reads + low.writes + high.reads + high.writes, 0);
}

TEST(Bus, an_empty_access_is_unknown) {
  Bus bus("port");
  RecordingDevice device;
  ASSERT_TRUE(bus.insert(0, 8, device, "device").has_value());
  EXPECT_FALSE(bus.read(0, {}));
  EXPECT_FALSE(bus.write(0, {}));
  EXPECT_EQ(device.reads + device.writes, 0);
}

TEST(Bus, size_zero_is_refused_with_the_devices_name) {
  Bus bus("port");
  RecordingDevice device;
  const auto inserted = bus.insert(0x3f8, 0, device, "serial");
  ASSERT_FALSE(inserted.has_value());
  EXPECT_EQ(inserted.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(inserted.error().message(), "port bus: serial has size 0");
}

TEST(Bus, an_overlap_is_refused_naming_both_devices) {
  Bus bus("port");
  RecordingDevice device;
  ASSERT_TRUE(bus.insert(0x3f8, 8, device, "serial").has_value());
  const auto inserted = bus.insert(0x3ff, 2, device, "floppy");
  ASSERT_FALSE(inserted.has_value());
  EXPECT_EQ(inserted.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(inserted.error().message(), "port bus: floppy at 0x3ff-0x400 overlaps serial at 0x3f8-0x3ff");
}

TEST(Bus, a_range_may_end_with_the_address_space_but_not_go_round_it) {
  Bus bus("mmio");
  RecordingDevice device;
  RecordingDevice whole;
  const auto wraps = bus.insert(kLastAddress - 6, 8, device, "late");
  ASSERT_FALSE(wraps.has_value());
  EXPECT_EQ(wraps.error().message(),
            "mmio bus: late at 0xfffffffffffffff9 with size 0x8 goes beyond the end of the address space");
  ASSERT_TRUE(bus.insert(kLastAddress - 7, 8, device, "last").has_value());
  EXPECT_FALSE(bus.insert(0, kLastAddress, whole, "whole").has_value());

  std::array<std::uint8_t, 8> data{};
  EXPECT_TRUE(bus.read(kLastAddress - 7, data));
  EXPECT_FALSE(bus.read(kLastAddress - 6, data));
  EXPECT_FALSE(bus.read(kLastAddress, std::span(data).first(2)));
  EXPECT_TRUE(bus.read(kLastAddress, std::span(data).first(1)));
  EXPECT_EQ(data[0], 7);
}

// Every way to put two ranges into a space of sixteen addresses, and every access to it, against an array.
TEST(Bus, two_ranges_in_a_small_space_behave_as_an_array_of_owners) {
  constexpr std::uint64_t kSpace = 16;
  for (const std::uint64_t shift : {std::uint64_t{0}, kLastAddress - (kSpace - 1)}) {
    for (std::uint64_t first = 0; first < kSpace; ++first) {
      for (std::uint64_t first_size = 1; first + first_size <= kSpace; ++first_size) {
        for (std::uint64_t second = 0; second < kSpace; ++second) {
          for (std::uint64_t second_size = 1; second + second_size <= kSpace; ++second_size) {
            Bus bus("model");
            std::array<RecordingDevice, 2> devices;
            ASSERT_TRUE(bus.insert(shift + first, first_size, devices[0], "a").has_value());
            std::array<int, kSpace> owner;
            owner.fill(-1);
            std::fill_n(owner.begin() + static_cast<int>(first), first_size, 0);
            bool free = true;
            for (std::uint64_t at = second; at < second + second_size; ++at) {
              free = free && owner.at(at) == -1;
            }
            ASSERT_EQ(bus.insert(shift + second, second_size, devices[1], "b").has_value(), free);
            if (!free) {
              continue;
            }
            std::fill_n(owner.begin() + static_cast<int>(second), second_size, 1);
            for (std::uint64_t at = 0; at < kSpace; ++at) {
              for (const std::size_t size : {1U, 2U, 4U, 8U}) {
                int expected = owner.at(at);
                for (std::uint64_t byte = at; byte < at + size; ++byte) {
                  if (byte >= kSpace || owner.at(byte) != expected) {
                    expected = -1;
                  }
                }
                std::array<std::uint8_t, 8> data{};
                const int before = devices[0].reads + devices[1].reads;
                ASSERT_EQ(bus.read(shift + at, std::span(data).first(size)), expected >= 0);
                if (expected >= 0) {
                  const std::uint64_t base = expected == 0 ? first : second;
                  ASSERT_EQ(devices.at(static_cast<std::size_t>(expected)).last_offset, at - base);
                  ASSERT_EQ(devices[0].reads + devices[1].reads, before + 1);
                } else {
                  ASSERT_EQ(devices[0].reads + devices[1].reads, before);
                  ASSERT_EQ(data[size - 1], 0xff);
                }
              }
            }
          }
        }
      }
    }
  }
}

// Many ranges in random order, against a list searched from end to end.
TEST(Bus, random_ranges_behave_as_a_linear_search) {
  std::mt19937_64 random(20240611);
  for (int round = 0; round < 200; ++round) {
    Bus bus("model");
    struct Range {
      std::uint64_t base;
      std::uint64_t size;
    };
    std::vector<std::optional<Range>> ranges;
    std::vector<RecordingDevice> devices(40);
    for (RecordingDevice& device : devices) {
      const Range range{random() % 512, 1 + random() % 24};
      const bool clashes = std::any_of(ranges.begin(), ranges.end(), [&](const std::optional<Range>& r) {
        return r && range.base < r->base + r->size && r->base < range.base + range.size;
      });
      ASSERT_EQ(bus.insert(range.base, range.size, device, "d").has_value(), !clashes);
      ranges.push_back(clashes ? std::nullopt : std::optional<Range>(range));
    }
    for (int access = 0; access < 500; ++access) {
      const std::uint64_t at = random() % 560;
      const std::size_t size = std::size_t{1} << (random() % 4);
      std::array<std::uint8_t, 8> data{};
      std::optional<std::size_t> expected;
      for (std::size_t i = 0; i < ranges.size(); ++i) {
        if (ranges[i] && at >= ranges[i]->base && at + size <= ranges[i]->base + ranges[i]->size) {
          expected = i;
        }
      }
      ASSERT_EQ(bus.write(at, std::span(data).first(size)), expected.has_value());
      if (expected) {
        ASSERT_EQ(devices[*expected].last_offset, at - ranges[*expected]->base);
        ASSERT_EQ(devices[*expected].written.size(), size);
        devices[*expected].written.clear();
      }
      for (const RecordingDevice& device : devices) {
        ASSERT_TRUE(device.written.empty());
      }
    }
  }
}

}  // namespace
}  // namespace mayfly
