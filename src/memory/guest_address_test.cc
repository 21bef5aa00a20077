#include "memory/guest_address.h"

#include <gtest/gtest.h>

#include <bitset>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace mayfly {
namespace {

__extension__ using Wide = unsigned __int128;  // holds every sum of two addresses

constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();
constexpr Wide kSpace = Wide{1} << 64;

// Values where arithmetic goes wrong if it does: the ends of the address space and of 32 bits, the hole, the
// sign.
std::vector<std::uint64_t> interesting_values() {
  std::vector<std::uint64_t> values;
  for (const std::uint64_t centre : {std::uint64_t{0}, std::uint64_t{0x1000}, std::uint64_t{0xc0000000},
                                     std::uint64_t{1} << 32, std::uint64_t{1} << 63}) {
    for (int delta = -3; delta <= 3; ++delta) {
      values.push_back(centre +
                       static_cast<std::uint64_t>(delta));  // wraps on purpose: both ends of the space
    }
  }
  return values;
}

TEST(GuestAddress, every_interesting_sum_and_difference_is_that_of_wider_arithmetic) {
  for (const std::uint64_t a : interesting_values()) {
    for (const std::uint64_t b : interesting_values()) {
      const auto sum = GuestAddress(a).checked_add(b);
      ASSERT_EQ(sum.has_value(), Wide{a} + b < kSpace) << a << " + " << b;
      if (sum) {
        ASSERT_EQ(sum->value(), a + b);
        ASSERT_EQ(sum->checked_offset_from(GuestAddress(a)), b);
      }
      const auto offset = GuestAddress(a).checked_offset_from(GuestAddress(b));
      ASSERT_EQ(offset.has_value(), a >= b) << a << " - " << b;
      if (offset) {
        ASSERT_EQ(*offset, a - b);
      }
      ASSERT_EQ(GuestAddress(a) < GuestAddress(b), a < b);
      ASSERT_EQ(GuestAddress(a) == GuestAddress(b), a == b);
    }
  }
}

TEST(GuestAddress, alignment_is_that_of_the_remainder) {
  for (const std::uint64_t value : interesting_values()) {
    for (std::uint64_t alignment = 1; alignment != 0; alignment <<= 1) {
      ASSERT_EQ(GuestAddress(value).is_aligned(alignment), value % alignment == 0)
          << value << " " << alignment;
    }
  }
}

TEST(GuestRange, every_interesting_base_and_size_makes_a_range_only_if_it_ends_within_the_address_space) {
  for (const std::uint64_t base : interesting_values()) {
    for (const std::uint64_t size : interesting_values()) {
      const auto range = GuestRange::make(GuestAddress(base), size);
      ASSERT_EQ(range.has_value(), size != 0 && Wide{base} + size <= kSpace) << base << " " << size;
      if (range) {
        ASSERT_EQ(range->base().value(), base);
        ASSERT_EQ(range->size(), size);
        ASSERT_EQ(Wide{range->last().value()}, Wide{base} + size - 1);
      }
    }
  }
}

TEST(GuestRange, every_interesting_pair_contains_and_overlaps_as_in_wider_arithmetic) {
  std::vector<GuestRange> ranges;
  for (const std::uint64_t base : interesting_values()) {
    for (const std::uint64_t size : interesting_values()) {
      if (const auto range = GuestRange::make(GuestAddress(base), size)) {
        ranges.push_back(*range);
      }
    }
  }
  ASSERT_GT(ranges.size(), 300U);
  const auto end = [](const GuestRange& range) { return Wide{range.base().value()} + range.size(); };
  for (const GuestRange& a : ranges) {
    for (const std::uint64_t address : interesting_values()) {
      ASSERT_EQ(a.contains(GuestAddress(address)), address >= a.base().value() && address < end(a));
    }
    for (const GuestRange& b : ranges) {
      ASSERT_EQ(a.contains(b), b.base() >= a.base() && end(b) <= end(a));
      ASSERT_EQ(a.overlaps(b), Wide{a.base().value()} < end(b) && Wide{b.base().value()} < end(a));
      ASSERT_EQ(a == b, a.base() == b.base() && a.size() == b.size());
    }
  }
}

// All there is in a space of 16 addresses, against sets of addresses written out: once at the bottom of the
// real space and once at its top, where the 16 addresses end as the real ones do.
class SmallSpace : public testing::TestWithParam<std::uint64_t> {
 protected:
  static constexpr std::uint64_t kCount = 16;
  using Set = std::bitset<kCount>;
  struct Entry {
    GuestRange range;
    Set set;
  };

  GuestAddress at(std::uint64_t index) const { return GuestAddress(GetParam() + index); }

  std::vector<Entry> all_ranges() const {
    std::vector<Entry> entries;
    for (std::uint64_t first = 0; first < kCount; ++first) {
      for (std::uint64_t size = 1; size <= kCount - first; ++size) {
        Set set;
        for (std::uint64_t i = first; i < first + size; ++i) {
          set.set(i);
        }
        const auto range = GuestRange::make(at(first), size);
        EXPECT_TRUE(range.has_value()) << first << " " << size;
        if (range) {
          entries.push_back({*range, set});
        }
      }
    }
    return entries;
  }
};

TEST_P(SmallSpace, every_pair_of_ranges_agrees_with_sets_of_addresses) {
  const std::vector<Entry> entries = all_ranges();
  ASSERT_EQ(entries.size(), kCount * (kCount + 1) / 2);
  for (const Entry& a : entries) {
    for (std::uint64_t i = 0; i < kCount; ++i) {
      ASSERT_EQ(a.range.contains(at(i)), a.set[i]);
    }
    for (const Entry& b : entries) {
      ASSERT_EQ(a.range.contains(b.range), (b.set & ~a.set).none());
      ASSERT_EQ(a.range.overlaps(b.range), (a.set & b.set).any());
      ASSERT_EQ(a.range == b.range, a.set == b.set);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(BothEnds, SmallSpace, testing::Values(0, kMax - 15));

TEST(GuestRange, every_range_past_the_last_address_is_refused) {
  for (std::uint64_t before_end = 0; before_end < 16; ++before_end) {
    const GuestAddress base(kMax - before_end);
    EXPECT_TRUE(GuestRange::make(base, before_end + 1).has_value());
    for (std::uint64_t size = before_end + 2; size < 40; ++size) {
      EXPECT_FALSE(GuestRange::make(base, size).has_value()) << before_end << " " << size;
    }
    EXPECT_FALSE(GuestRange::make(base, kMax).has_value());
    EXPECT_FALSE(GuestRange::make(base, 0).has_value());
  }
}

}  // namespace
}  // namespace mayfly
