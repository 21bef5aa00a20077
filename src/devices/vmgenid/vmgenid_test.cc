#include "devices/vmgenid/vmgenid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <span>
#include <vector>

namespace mayfly {
namespace {

constexpr GuestAddress kPage(0x5000);
constexpr std::size_t kSize = 0x10000;

GuestMemory make_memory() {
  const std::array ranges = {*GuestRange::make(GuestAddress(0), kSize)};
  auto memory = GuestMemory::create(ranges, Backing::kAnonymous);
  EXPECT_TRUE(memory) << memory.error().message();
  return std::move(*memory);
}

RandomId id_of(int first) {
  RandomId id;
  for (std::size_t i = 0; i < id.size(); ++i) {
    id[i] = static_cast<std::byte>(static_cast<std::size_t>(first) + i);
  }
  return id;
}

std::vector<std::byte> bytes_of(const GuestMemory& memory) {
  std::vector<std::byte> bytes(kSize);
  EXPECT_TRUE(memory.read(GuestAddress(0), bytes));
  return bytes;
}

TEST(VmGenId, fresh_memory_has_neither_generation_nor_mark) {
  const GuestMemory memory = make_memory();
  EXPECT_EQ(*read_generation(memory, kPage), RandomId{});
  EXPECT_EQ(*read_snapshot_mark(memory, kPage), RandomId{});
}

TEST(VmGenId, generation_and_mark_stand_at_their_offsets_and_nothing_else_is_written) {
  GuestMemory memory = make_memory();
  ASSERT_TRUE(write_generation(memory, kPage, id_of(0x10)));
  ASSERT_TRUE(write_snapshot_mark(memory, kPage, id_of(0xa0)));
  std::vector<std::byte> expected(kSize);
  std::ranges::copy(id_of(0x10), expected.begin() + 0x5100);
  std::ranges::copy(id_of(0xa0), expected.begin() + 0x5200);
  EXPECT_EQ(bytes_of(memory), expected);
  EXPECT_EQ(*read_generation(memory, kPage), id_of(0x10));
  EXPECT_EQ(*read_snapshot_mark(memory, kPage), id_of(0xa0));
}

TEST(VmGenId, each_is_replaced_whole_and_leaves_the_other) {
  GuestMemory memory = make_memory();
  ASSERT_TRUE(write_generation(memory, kPage, id_of(1)));
  ASSERT_TRUE(write_snapshot_mark(memory, kPage, id_of(2)));
  ASSERT_TRUE(write_generation(memory, kPage, id_of(0x80)));
  EXPECT_EQ(*read_generation(memory, kPage), id_of(0x80));
  EXPECT_EQ(*read_snapshot_mark(memory, kPage), id_of(2));
}

TEST(VmGenId, a_base_is_written_with_no_pages_of_a_diff) {
  GuestMemory memory = make_memory();
  const auto pages = kPage.checked_add(kDiffPagesOffset);
  ASSERT_TRUE(memory.write(*pages, id_of(3)));  // as a guest may
  EXPECT_EQ(*read_diff_page_count(memory, kPage), *memory.read_object<std::uint64_t>(*pages));
  ASSERT_TRUE(write_snapshot_base(memory, kPage, id_of(2)));
  EXPECT_EQ(*read_snapshot_base(memory, kPage), id_of(2));
  EXPECT_EQ(*memory.read_object<RandomId>(*pages), RandomId{});
  EXPECT_EQ(*read_diff_page_count(memory, kPage), 0U);
}

TEST(VmGenId, what_the_specification_asks_of_the_place_holds) {
  EXPECT_EQ(kGenerationOffset % 8, 0U) << "8-byte aligned";
  for (const std::uint64_t offset : {kGenerationOffset, kSnapshotMarkOffset}) {
    EXPECT_LE(offset + sizeof(RandomId), kGenerationPageSize);
    EXPECT_GE(offset % 0x800, 2U) << "an expansion ROM's signature begins each 2 KiB";
  }
  EXPECT_GE(kSnapshotMarkOffset, kGenerationOffset + sizeof(RandomId));
}

TEST(VmGenId, places_that_are_no_page_of_ram_are_refused_and_nothing_is_written) {
  GuestMemory memory = make_memory();
  for (const GuestAddress page :
       {GuestAddress(kSize), GuestAddress(0x5008), GuestAddress(~std::uint64_t{0} & ~std::uint64_t{0xfff})}) {
    for (const auto& result :
         {write_generation(memory, page, id_of(1)), write_snapshot_mark(memory, page, id_of(1))}) {
      ASSERT_FALSE(result);
      EXPECT_EQ(result.error().code(), ErrorCode::kOutOfRange);
    }
    for (const auto& result : {read_generation(memory, page), read_snapshot_mark(memory, page)}) {
      ASSERT_FALSE(result);
      EXPECT_EQ(result.error().code(), ErrorCode::kOutOfRange);
    }
  }
  EXPECT_EQ(bytes_of(memory), std::vector<std::byte>(kSize));
}

TEST(VmGenId, random_ids_differ_in_every_byte_sooner_or_later) {
  std::set<RandomId> seen;
  std::array<std::set<std::byte>, 16> values;
  for (int i = 0; i < 1000; ++i) {
    const auto id = make_random_id();
    ASSERT_TRUE(id);
    EXPECT_TRUE(seen.insert(*id).second);
    for (std::size_t byte = 0; byte < id->size(); ++byte) {
      values.at(byte).insert((*id)[byte]);
    }
  }
  for (const auto& of_byte : values) {
    EXPECT_GT(of_byte.size(), 200U) << "of 1000 draws from 256 values, about 251 are seen";
  }
}

}  // namespace
}  // namespace mayfly
