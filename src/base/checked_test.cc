#include "base/checked.h"

#include <gtest/gtest.h>

#include <limits>

namespace mayfly {
namespace {

TEST(Checked, every_pair_of_bytes_adds_and_multiplies_as_in_wider_arithmetic) {
  for (int a = 0; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) {
      const auto sum = checked_add(static_cast<std::uint8_t>(a), static_cast<std::uint8_t>(b));
      const auto product = checked_multiply(static_cast<std::uint8_t>(a), static_cast<std::uint8_t>(b));
      ASSERT_EQ(sum.has_value(), a + b <= 255);
      ASSERT_EQ(product.has_value(), a * b <= 255);
      if (sum) {
        ASSERT_EQ(int{*sum}, a + b);
      }
      if (product) {
        ASSERT_EQ(int{*product}, a * b);
      }
    }
  }
}

TEST(Checked, aligning_up_at_the_end_of_the_address_space_overflows) {
  EXPECT_EQ(checked_align_up(0, 4096), 0U);
  EXPECT_EQ(checked_align_up(1, 4096), 4096U);
  EXPECT_EQ(checked_align_up(4096, 4096), 4096U);
  EXPECT_FALSE(checked_align_up(std::numeric_limits<std::uint64_t>::max() - 1, 4096));
}

}  // namespace
}  // namespace mayfly
