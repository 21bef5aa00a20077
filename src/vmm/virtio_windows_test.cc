#include "vmm/virtio_windows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "devices/virtio/transport/mmio_transport.h"

namespace mayfly::testing {
namespace {

constexpr std::size_t kWords = MmioTransport::kWindow / sizeof(std::uint32_t);

TEST(VirtioWindows, windows_lie_one_behind_the_other_and_are_zeroes) {
  const VirtioWindows windows = std::move(*VirtioWindows::create(3));
  EXPECT_EQ(windows.all().size(), 3 * kWords);
  EXPECT_TRUE(std::ranges::all_of(windows.all(), [](std::uint32_t word) { return word == 0; }));
  windows.window(2).front() = 7;
  EXPECT_EQ(windows.all()[2 * kWords], 7U);
  EXPECT_EQ(windows.window(1).size(), kWords);
}

TEST(VirtioWindows, no_devices_have_no_pages) {
  const VirtioWindows windows = std::move(*VirtioWindows::create(0));
  EXPECT_TRUE(windows.all().empty());
}

TEST(VirtioWindows, moved_pages_keep_their_place) {
  VirtioWindows windows = std::move(*VirtioWindows::create(1));
  const std::uint32_t* const place = windows.all().data();
  const VirtioWindows other = std::move(windows);
  EXPECT_EQ(other.all().data(), place);
}

}  // namespace
}  // namespace mayfly::testing
