#include "boot/initrd.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>

#include "support/image_builder.h"

namespace mayfly {
namespace {

using testing::Bytes;
using ::testing::HasSubstr;
using testing::make_file;
using testing::make_memory;
using testing::pattern;
using testing::read_memory;

constexpr std::uint64_t kMiB = 1024 * 1024;

LoadedKernel kernel_at(std::uint64_t base, std::uint64_t size, std::uint64_t initrd_last = 0xffffffff) {
  return {KernelFormat::kElf,
          {BootProtocol::kPvh, GuestAddress(base)},
          *GuestRange::make(GuestAddress(base), size),
          2048,
          GuestAddress(initrd_last),
          {}};
}

// A file of `size` bytes, all of them a hole.
UniqueFd make_sparse_file(std::uint64_t size) {
  UniqueFd file = make_file({});
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(size)), 0);
  return file;
}

std::uint64_t placed_at(GuestMemory& memory, std::uint64_t size, const LoadedKernel& kernel) {
  const auto range = load_initrd(memory, make_sparse_file(size), "/i", kernel);
  if (!range) {
    ADD_FAILURE() << range.error().message();
    return 0;
  }
  EXPECT_EQ(range->size(), size);
  EXPECT_TRUE(range->base().is_aligned(4096));
  EXPECT_FALSE(range->overlaps(kernel.extent));
  return range->base().value();
}

std::string refusal(GuestMemory& memory, std::uint64_t size, const LoadedKernel& kernel) {
  const auto range = load_initrd(memory, make_sparse_file(size), "/i", kernel);
  if (range) {
    return "was placed";
  }
  EXPECT_EQ(range.error().code(), ErrorCode::kInvalidImage);
  return range.error().message();
}

TEST(Initrd, goes_to_the_first_page_behind_the_kernel) {
  GuestMemory memory = make_memory(64 * kMiB);
  const Bytes content = pattern(0x1234);
  const auto range = load_initrd(memory, make_file(content), "/i", kernel_at(16 * kMiB, kMiB));
  ASSERT_TRUE(range) << range.error().message();
  EXPECT_EQ(*range, *GuestRange::make(GuestAddress(17 * kMiB), 0x1234));
  EXPECT_EQ(read_memory(memory, range->base().value(), 0x1234), content);
  EXPECT_EQ(placed_at(memory, 0x1001, kernel_at(16 * kMiB, kMiB - 1)), 17 * kMiB);
  EXPECT_EQ(placed_at(memory, 1, kernel_at(16 * kMiB, kMiB + 1)), 17 * kMiB + 0x1000);
}

TEST(Initrd, stays_below_the_address_that_the_kernel_names) {
  GuestMemory memory = make_memory(64 * kMiB);
  EXPECT_EQ(placed_at(memory, 20 * kMiB, kernel_at(16 * kMiB, 12 * kMiB, 48 * kMiB - 1)), 28 * kMiB);
  EXPECT_THAT(refusal(memory, 20 * kMiB, kernel_at(16 * kMiB, 12 * kMiB, 48 * kMiB - 2)),
              HasSubstr("is 20971519 bytes"));
}

TEST(Initrd, goes_into_the_first_range_of_memory) {
  const std::array ranges{*GuestRange::make(GuestAddress(0), 32 * kMiB),
                          *GuestRange::make(GuestAddress(std::uint64_t{1} << 32), 64 * kMiB)};
  auto memory = GuestMemory::create(ranges, Backing::kAnonymous);
  ASSERT_TRUE(memory);
  EXPECT_EQ(placed_at(*memory, 15 * kMiB, kernel_at(16 * kMiB, kMiB)), 17 * kMiB);
  EXPECT_THAT(refusal(*memory, 15 * kMiB + 1, kernel_at(16 * kMiB, kMiB)), HasSubstr("is 15728640 bytes"));
}

TEST(Initrd, fills_the_room_above_the_kernel_to_the_last_page) {
  GuestMemory memory = make_memory(64 * kMiB);
  const LoadedKernel kernel = kernel_at(16 * kMiB, 8 * kMiB - 0xfff);
  EXPECT_EQ(placed_at(memory, 40 * kMiB, kernel), 24 * kMiB);
  EXPECT_THAT(refusal(memory, 40 * kMiB + 1, kernel), HasSubstr("has 41943041 bytes"));
}

TEST(Initrd, goes_below_a_kernel_that_leaves_more_room_there) {
  GuestMemory memory = make_memory(32 * kMiB);
  EXPECT_EQ(placed_at(memory, 15 * kMiB, kernel_at(16 * kMiB + 0x234, 14 * kMiB)), kMiB);
  EXPECT_EQ(placed_at(memory, 2 * kMiB, kernel_at(16 * kMiB, 16 * kMiB)), kMiB);
}

TEST(Initrd, a_kernel_beyond_the_highest_address_is_in_nobodys_way) {
  GuestMemory memory = make_memory(64 * kMiB);
  EXPECT_EQ(placed_at(memory, 31 * kMiB, kernel_at(40 * kMiB, kMiB, 32 * kMiB - 1)), kMiB);
  // One that begins below it and ends above it leaves the room below itself.
  EXPECT_EQ(placed_at(memory, 29 * kMiB, kernel_at(30 * kMiB, 8 * kMiB, 32 * kMiB - 1)), kMiB);
}

TEST(Initrd, that_fits_nowhere_is_refused_with_both_sizes) {
  GuestMemory memory = make_memory(32 * kMiB);
  EXPECT_EQ(
      refusal(memory, 16 * kMiB, kernel_at(16 * kMiB, kMiB)),
      "initrd /i: has 16777216 bytes, but the most that fits beside the kernel at [0x1000000, 0x10fffff] is "
      "15728640 bytes: give the guest more memory");
  EXPECT_THAT(refusal(memory, std::uint64_t{1} << 40, kernel_at(16 * kMiB, kMiB)),
              HasSubstr("1099511627776"));
  EXPECT_THAT(refusal(memory, 1, kernel_at(kMiB, 31 * kMiB)), HasSubstr("is 0 bytes"));
  EXPECT_THAT(refusal(memory, 1, kernel_at(16 * kMiB, kMiB, 0xfff)), HasSubstr("is 0 bytes"));
}

TEST(Initrd, that_is_empty_or_no_file_is_refused) {
  GuestMemory memory = make_memory(32 * kMiB);
  EXPECT_EQ(refusal(memory, 0, kernel_at(16 * kMiB, kMiB)), "initrd /i: is empty");
  const UniqueFd event = std::move(*make_eventfd());
  const auto range = load_initrd(memory, event, "/i", kernel_at(16 * kMiB, kMiB));
  ASSERT_FALSE(range);
  EXPECT_EQ(range.error().message(), "initrd /i: is a special file, not a regular file");
}

}  // namespace
}  // namespace mayfly
