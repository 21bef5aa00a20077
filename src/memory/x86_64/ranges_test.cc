#include "memory/x86_64/ranges.h"

#include <gtest/gtest.h>

namespace mayfly::x86_64 {
namespace {

constexpr std::uint64_t kMiB = 1ULL << 20;
constexpr std::uint64_t kGiB = 1ULL << 30;

TEST(MemoryRanges, sizes_up_to_the_hole_are_one_range_from_zero) {
  for (const std::uint64_t size : {kMiB, 128 * kMiB, 3 * kGiB - 4096, 3 * kGiB}) {
    const auto ranges = memory_ranges(size).value();
    ASSERT_EQ(ranges.size(), 1U) << size;
    EXPECT_EQ(ranges[0].base(), GuestAddress(0));
    EXPECT_EQ(ranges[0].size(), size);
  }
}

TEST(MemoryRanges, what_does_not_fit_below_the_hole_goes_on_at_4_gib) {
  for (const std::uint64_t size : {3 * kGiB + 4096, 4 * kGiB, 64 * kGiB, 4096 * kGiB, kMaxMemorySize}) {
    const auto ranges = memory_ranges(size).value();
    ASSERT_EQ(ranges.size(), 2U) << size;
    EXPECT_EQ(ranges[0].last().value(), kMmioGapStart - 1);
    EXPECT_EQ(ranges[1].base().value(), kMmioGapEnd);
    EXPECT_EQ(ranges[0].size() + ranges[1].size(), size);
    EXPECT_LT(ranges[1].last().value(), std::uint64_t{1} << 52);
  }
}

TEST(MemoryRanges, sizes_outside_the_limits_or_of_part_of_a_page_are_refused) {
  for (const std::uint64_t size : {std::uint64_t{0}, kMiB - 4096, kMiB + 1, 3 * kGiB + 512,
                                   kMaxMemorySize + 4096, ~std::uint64_t{0}, ~std::uint64_t{0} - 4095}) {
    const auto ranges = memory_ranges(size);
    ASSERT_FALSE(ranges.has_value()) << size;
    EXPECT_EQ(ranges.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(ranges.error().message().find(std::to_string(size)), std::string::npos);
  }
}

}  // namespace
}  // namespace mayfly::x86_64
