#include "vmm/boot_mark.h"

#include <gtest/gtest.h>

#include <array>

namespace mayfly {
namespace {

class BootMarkTest : public ::testing::Test {
 protected:
  template <typename... Bytes>
  void write(std::uint64_t offset, Bytes... bytes) {
    const std::array<std::uint8_t, sizeof...(Bytes)> data{static_cast<std::uint8_t>(bytes)...};
    mark_.bus_write(offset, data);
  }

  int marks_ = 0;
  BootMark mark_{[this] { ++marks_; }};
};

TEST_F(BootMarkTest, the_magic_byte_at_the_first_address_is_the_mark_once) {
  write(0, BootMark::kMagic);
  write(0, BootMark::kMagic);
  EXPECT_EQ(marks_, 1);
}

TEST_F(BootMarkTest, the_magic_byte_counts_in_an_access_of_any_size) {
  write(0, BootMark::kMagic, 0, 0, 0, 0, 0, 0, 0);
  EXPECT_EQ(marks_, 1);
}

TEST_F(BootMarkTest, every_other_byte_and_address_is_ignored) {
  for (int byte = 0; byte < 256; ++byte) {
    if (byte != BootMark::kMagic) {
      write(0, byte);
    }
  }
  write(0, 0, BootMark::kMagic);
  for (std::uint64_t offset = 1; offset < BootMark::kSize; ++offset) {
    write(offset, BootMark::kMagic);
  }
  EXPECT_EQ(marks_, 0);
}

TEST_F(BootMarkTest, reads_give_zeros) {
  std::array<std::uint8_t, 8> data;
  data.fill(0xa5);
  mark_.bus_read(0, data);
  EXPECT_EQ(data, (std::array<std::uint8_t, 8>{}));
}

}  // namespace
}  // namespace mayfly
