// The fake against bytes written by hand from virtio 1.2, section 2.7: what it writes, and what it makes of a
// device's answers. No device of ours is involved.
#include "support/virtio_driver/split_ring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <vector>

namespace mayfly::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t kBase = 0x1000;
constexpr std::uint64_t kBuffers = 0x4000;

std::vector<std::byte> bytes(std::initializer_list<unsigned> values) {
  std::vector<std::byte> made;
  for (const unsigned value : values) {
    made.push_back(static_cast<std::byte>(value));
  }
  return made;
}

// A queue of four entries: descriptors at 0x1000, available ring at 0x1040 (used_event at 0x104c), used ring
// at 0x1050 (entries from 0x1054 on, avail_event at 0x1074). Buffers from 0x4000 on.
class SplitRingTest : public ::testing::Test {
 protected:
  SplitRing make(RingFeatures features = {}) {
    return SplitRing(memory_, RingLayout::at(kBase, 4), BufferArena(kBuffers, 0x1000), features);
  }

  std::vector<std::byte> at(std::uint64_t address, std::size_t size) {
    return memory_.read_bytes(address, size);
  }
  void poke(std::uint64_t address, std::initializer_list<unsigned> values) {
    memory_.write(address, bytes(values));
  }
  // The device's answer: entry number `slot` of the used ring, then the index behind it.
  void return_used(unsigned slot, unsigned id, unsigned length, unsigned index) {
    poke(0x1054 + 8ULL * slot, {id & 0xff, id >> 8, 0, 0, length & 0xff, length >> 8, 0, 0});
    poke(0x1052, {index & 0xff, index >> 8});
  }

  ByteMemory memory_{0x1000, 0x5000};
};

TEST_F(SplitRingTest, layout_has_the_sizes_and_alignments_of_the_table) {
  const RingLayout layout = RingLayout::at(0x1000, 4);
  EXPECT_EQ(layout.descriptors, 0x1000u);
  EXPECT_EQ(layout.available, 0x1040u);  // behind 4 * 16 bytes
  EXPECT_EQ(layout.used, 0x1050u);       // behind 6 + 2 * 4 bytes, aligned to 4
  EXPECT_EQ(layout.end(), 0x1076u);      // behind 6 + 8 * 4 bytes
  EXPECT_EQ(RingLayout::at(0, 32768).used, 16u * 32768 + 6 + 2 * 32768 + 2);
}

TEST_F(SplitRingTest, construction_zeroes_all_three_parts_and_nothing_behind_them) {
  memory_.write(kBase, std::vector(0x100, std::byte{0x55}));
  auto ring = make();
  EXPECT_EQ(at(0x1000, 0x4e), std::vector(0x4e, std::byte{0}));
  EXPECT_EQ(at(0x1050, 0x26), std::vector(0x26, std::byte{0}));
  EXPECT_EQ(at(0x1076, 1), bytes({0x55}));
}

TEST_F(SplitRingTest, chain_of_two_is_two_linked_descriptors_and_one_available_entry) {
  auto ring = make();
  EXPECT_EQ(ring.chain().readable(bytes({1, 2, 3})).writable(0x0102).submit(), 0);
  EXPECT_EQ(at(0x1000, 32), bytes({0x00, 0x40, 0, 0, 0, 0, 0, 0, 3,    0,    0, 0, 1, 0, 1, 0,  //
                                   0x10, 0x40, 0, 0, 0, 0, 0, 0, 0x02, 0x01, 0, 0, 2, 0, 0, 0}));
  EXPECT_EQ(at(0x1040, 8), bytes({0, 0, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(at(0x4000, 3), bytes({1, 2, 3}));
  EXPECT_EQ(at(0x4010, 2), bytes({0xee, 0xee}));

  EXPECT_EQ(ring.chain().readable_at(0x1122334455667788, 0x99aabbcc).submit(), 2);
  EXPECT_EQ(at(0x1020, 16),
            bytes({0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xcc, 0xbb, 0xaa, 0x99, 0, 0, 0, 0}));
  EXPECT_EQ(at(0x1042, 6), bytes({2, 0, 0, 0, 2, 0}));
  EXPECT_EQ(ring.free_descriptors(), 1u);
  EXPECT_EQ(ring.outstanding(), 2u);
}

TEST_F(SplitRingTest, offered_chains_are_exposed_together) {
  auto ring = make();
  ring.offer(ring.chain().writable(1).place());
  ring.offer(ring.chain().writable(1).place());
  EXPECT_EQ(at(0x1042, 6), bytes({0, 0, 0, 0, 1, 0}));
  ring.expose();
  EXPECT_EQ(at(0x1042, 2), bytes({2, 0}));
}

TEST_F(SplitRingTest, indirect_chain_is_one_descriptor_and_a_table) {
  auto ring = make();
  ring.chain().readable_at(0x10, 1).writable_at(0x20, 2).indirect().submit();
  EXPECT_EQ(at(0x1000, 16), bytes({0x00, 0x40, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 4, 0, 0, 0}));
  EXPECT_EQ(at(0x4000, 32), bytes({0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0,  //
                                   0x20, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0}));
  EXPECT_EQ(ring.free_descriptors(), 3u);
}

TEST_F(SplitRingTest, indirect_table_may_follow_direct_descriptors) {
  auto ring = make();
  ring.chain().readable_at(0x10, 1).writable_at(0x20, 2).indirect(1).submit();
  EXPECT_EQ(at(0x1000, 32), bytes({0x10, 0,    0, 0, 0, 0, 0, 0, 1,  0, 0, 0, 1, 0, 1, 0,  //
                                   0x00, 0x40, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0, 0}));
  EXPECT_EQ(at(0x4000, 16), bytes({0x20, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0}));
}

TEST_F(SplitRingTest, collect_returns_used_buffers_in_the_devices_order_with_their_bytes) {
  auto ring = make();
  ring.chain().writable(4).submit();
  ring.chain().readable(bytes({7})).writable(2).writable(1).submit();
  EXPECT_FALSE(ring.collect().has_value());

  poke(0x4020, {0xaa, 0xbb});  // the second chain's buffers
  poke(0x4030, {0xcc});
  return_used(0, 1, 2, 1);
  const auto first = ring.collect();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->head, 1);
  EXPECT_EQ(first->length, 2u);
  EXPECT_EQ(first->writable, bytes({0xaa, 0xbb, 0xcc}));
  EXPECT_THAT(first->written(), ElementsAre(std::byte{0xaa}, std::byte{0xbb}));
  EXPECT_EQ(ring.free_descriptors(), 3u);
  EXPECT_FALSE(ring.collect().has_value());

  return_used(1, 0, 4, 2);
  EXPECT_EQ(ring.collect_all().size(), 1u);
  EXPECT_EQ(ring.collected(), 2u);
  EXPECT_EQ(ring.outstanding(), 0u);
  EXPECT_EQ(ring.free_descriptors(), 4u);
  EXPECT_THAT(ring.violations(), IsEmpty());
}

TEST_F(SplitRingTest, indices_wrap_at_65536_and_buffer_memory_is_used_again) {
  auto ring = make({.event_idx = false, .in_order = true});
  for (unsigned i = 0; i < 66000; ++i) {
    // Descriptors in ring order, as IN_ORDER has it.
    ASSERT_EQ(ring.chain().readable(bytes({1})).writable(0x800).place(), 2 * i % 4);
    ring.offer(static_cast<std::uint16_t>(2 * i % 4));
    ring.expose();
    return_used(i % 4, 2 * i % 4, 0, (i + 1) & 0xffff);
    ASSERT_TRUE(ring.collect().has_value());
  }
  EXPECT_EQ(ring.available_index(), 66000 - 65536);
  EXPECT_THAT(ring.violations(), IsEmpty());
}

TEST_F(SplitRingTest, in_order_entry_stands_for_its_batch) {
  auto ring = make({.event_idx = false, .in_order = true});
  for (int i = 0; i < 4; ++i) {
    ring.chain().writable(8).submit();
  }
  return_used(0, 2, 5, 3);  // heads 0, 1 and 2
  auto batch = ring.collect_all();
  ASSERT_EQ(batch.size(), 3u);
  EXPECT_EQ(batch[0].head, 0);
  EXPECT_EQ(batch[0].length, 8u);  // skipped: used completely
  EXPECT_EQ(batch[2].head, 2);
  EXPECT_EQ(batch[2].length, 5u);
  return_used(3, 3, 8, 4);  // the next entry stands behind the whole batch
  EXPECT_EQ(ring.collect_all().size(), 1u);
  EXPECT_THAT(ring.violations(), IsEmpty());
}

TEST_F(SplitRingTest, in_order_entry_that_overtakes_is_a_violation) {
  auto ring = make({.event_idx = false, .in_order = true});
  ring.chain().writable(8).submit();
  ring.chain().writable(8).submit();
  return_used(0, 1, 8, 1);
  EXPECT_THAT(ring.collect_all(), IsEmpty());
  EXPECT_THAT(ring.violations(), ElementsAre(HasSubstr("out of order")));
}

TEST_F(SplitRingTest, used_index_that_runs_ahead_or_back_is_a_violation) {
  auto ring = make();
  ring.chain().writable(8).submit();
  return_used(0, 0, 8, 2);
  EXPECT_THAT(ring.collect_all(), IsEmpty());
  EXPECT_THAT(ring.violations(), ElementsAre(HasSubstr("from 0 to 2 with 1 buffers")));

  auto other = make();
  other.chain().writable(8).submit();
  return_used(0, 0, 8, 1);
  EXPECT_EQ(other.collect_all().size(), 1u);
  other.chain().writable(8).submit();
  return_used(0, 0, 8, 0);
  EXPECT_THAT(other.collect_all(), IsEmpty());
  EXPECT_THAT(other.violations(), ElementsAre(HasSubstr("from 1 to 0")));
}

TEST_F(SplitRingTest, head_that_the_device_does_not_have_is_a_violation) {
  auto ring = make();
  ring.chain().writable(8).submit();
  ring.chain().writable(8).submit();
  return_used(0, 0, 8, 1);
  EXPECT_EQ(ring.collect_all().size(), 1u);
  return_used(1, 0, 8, 2);  // a second time
  EXPECT_THAT(ring.collect_all(), IsEmpty());
  EXPECT_THAT(ring.violations(), ElementsAre(HasSubstr("returns head 0")));

  auto other = make();
  other.chain().writable(8).submit();
  poke(0x1054, {0, 0, 1, 0});  // id 0x10000 is not head 0
  poke(0x1052, {1, 0});
  EXPECT_THAT(other.collect_all(), IsEmpty());
  EXPECT_THAT(other.violations(), ElementsAre(HasSubstr("returns head 65536")));
}

TEST_F(SplitRingTest, length_above_the_writable_bytes_is_a_violation) {
  auto ring = make();
  ring.chain().readable(bytes({1, 2})).writable(8).submit();
  return_used(0, 0, 9, 1);
  EXPECT_EQ(ring.collect_all().size(), 1u);
  EXPECT_THAT(ring.violations(), ElementsAre(HasSubstr("length 9 of 8")));
}

TEST_F(SplitRingTest, changed_readable_buffer_is_a_violation) {
  auto ring = make();
  ring.chain().readable(bytes({1, 2})).submit();
  poke(0x4001, {3});
  return_used(0, 0, 0, 1);
  EXPECT_EQ(ring.collect_all().size(), 1u);
  EXPECT_THAT(ring.violations(), ElementsAre(HasSubstr("device-readable")));
}

TEST_F(SplitRingTest, changed_table_or_available_ring_is_a_violation) {
  auto ring = make();
  ring.chain().writable(8).submit();
  ring.set_used_event(7);
  ring.check_driver_areas();
  EXPECT_THAT(ring.violations(), IsEmpty());
  poke(0x100c, {0});
  ring.check_driver_areas();
  poke(0x1044, {1});
  ring.check_driver_areas();
  EXPECT_THAT(ring.violations(), ElementsAre(HasSubstr("table"), HasSubstr("table"), HasSubstr("available")));
}

TEST_F(SplitRingTest, without_event_idx_the_devices_flag_decides_about_notifications) {
  auto ring = make();
  EXPECT_FALSE(ring.should_notify());
  ring.chain().writable(1).submit();
  EXPECT_TRUE(ring.should_notify());
  EXPECT_FALSE(ring.should_notify()) << "nothing new";
  poke(0x1050, {1, 0});
  poke(0x1074, {1, 0});  // avail_event means nothing here
  ring.chain().writable(1).submit();
  EXPECT_FALSE(ring.should_notify());
  EXPECT_THAT(ring.violations(), IsEmpty());
  poke(0x1050, {2, 0});
  ring.should_notify();
  EXPECT_THAT(ring.violations(), ElementsAre(HasSubstr("flags are 2")));
}

TEST_F(SplitRingTest, with_event_idx_the_entry_at_avail_event_is_notified) {
  auto ring = make({.event_idx = true, .in_order = false});
  poke(0x1074, {1, 0});
  ring.chain().writable(1).submit();  // entry 0
  EXPECT_FALSE(ring.should_notify());
  ring.chain().writable(1).submit();  // entry 1
  EXPECT_TRUE(ring.should_notify());
  ring.chain().writable(1).submit();  // entry 2
  EXPECT_FALSE(ring.should_notify());
  EXPECT_THAT(ring.violations(), IsEmpty());
  poke(0x1050, {1, 0});
  ring.should_notify();
  EXPECT_THAT(ring.violations(), ElementsAre(HasSubstr("flags are 1")));
}

TEST_F(SplitRingTest, passes_is_true_for_each_index_on_the_way_and_no_other) {
  EXPECT_FALSE(SplitRing::passes(5, 5, 5));
  EXPECT_TRUE(SplitRing::passes(5, 5, 6));
  EXPECT_FALSE(SplitRing::passes(6, 5, 6));
  EXPECT_FALSE(SplitRing::passes(4, 5, 6));
  EXPECT_TRUE(SplitRing::passes(65535, 65534, 1));
  EXPECT_TRUE(SplitRing::passes(0, 65534, 1));
  EXPECT_FALSE(SplitRing::passes(1, 65534, 1));
}

TEST_F(SplitRingTest, interrupts_are_asked_for_by_flag_without_event_idx) {
  auto ring = make();
  ring.disable_interrupts();
  EXPECT_EQ(at(0x1040, 2), bytes({1, 0}));
  EXPECT_FALSE(ring.enable_interrupts());
  EXPECT_EQ(at(0x1040, 2), bytes({0, 0}));
  ring.chain().writable(1).submit();
  return_used(0, 0, 1, 1);
  EXPECT_TRUE(ring.enable_interrupts()) << "a used buffer is there already";
  EXPECT_EQ(at(0x104c, 2), bytes({0, 0})) << "used_event is not touched";
}

TEST_F(SplitRingTest, interrupts_are_asked_for_by_used_event_with_event_idx) {
  auto ring = make({.event_idx = true, .in_order = false});
  ring.chain().writable(1).submit();
  return_used(0, 0, 1, 1);
  ring.collect();
  ring.enable_interrupts();
  EXPECT_EQ(at(0x104c, 2), bytes({1, 0}));
  ring.disable_interrupts();
  EXPECT_EQ(at(0x104c, 2), bytes({0, 0}));
  ring.set_used_event(0x1234);
  EXPECT_EQ(at(0x104c, 2), bytes({0x34, 0x12}));
  EXPECT_EQ(at(0x1040, 2), bytes({0, 0})) << "flags stay 0";
}

TEST_F(SplitRingTest, lies_stand_in_memory_as_they_were_told) {
  auto ring = make();
  ring.chain()
      .writable(8)
      .with_flags(0xfff8)
      .with_next(0x1234)
      .with_length(0xffffffff)
      .with_address(1)
      .submit();
  EXPECT_EQ(at(0x1000, 16), bytes({1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xf8, 0xff, 0x34, 0x12}));
  return_used(0, 0, 1000, 1);
  EXPECT_EQ(ring.collect_all().size(), 1u);
  EXPECT_THAT(ring.violations(), IsEmpty()) << "what such a chain holds is unknown";

  ring.chain().writable_at(0, 1).indirect().with_table_length(17).with_table_flags(3).submit();
  EXPECT_EQ(at(0x1018, 8), bytes({17, 0, 0, 0, 7, 0, 0, 0}));

  const Descriptor anything{.address = 2, .length = 3, .flags = 4, .next = 5};
  ring.write_descriptor(3, anything);
  EXPECT_EQ(at(0x1030, 16), bytes({2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 5, 0}));
  EXPECT_EQ(ring.read_descriptor(3), anything);
  ring.write_available_entry(3, 0xabcd);
  EXPECT_EQ(at(0x104a, 2), bytes({0xcd, 0xab}));
  ring.write_available_index(0x8001);
  EXPECT_EQ(at(0x1042, 2), bytes({0x01, 0x80}));
  ring.write_available_flags(0xffff);
  EXPECT_EQ(at(0x1040, 2), bytes({0xff, 0xff}));
}

TEST_F(SplitRingTest, head_offered_twice_may_come_back_twice) {
  auto ring = make();
  const std::uint16_t head = ring.chain().writable(8).place();
  ring.offer(head);
  ring.offer(head);
  ring.expose();
  return_used(0, head, 8, 1);
  return_used(1, head, 8, 2);
  EXPECT_EQ(ring.collect_all().size(), 2u);
  EXPECT_EQ(ring.free_descriptors(), 4u);
  EXPECT_THAT(ring.violations(), IsEmpty());
}

TEST_F(SplitRingTest, head_outside_the_table_may_be_offered_and_come_back) {
  for (const bool in_order : {false, true}) {
    auto ring = make({.event_idx = false, .in_order = in_order});
    ring.offer(0xfffe);
    ring.expose();
    EXPECT_EQ(at(0x1044, 2), bytes({0xfe, 0xff}));
    return_used(0, 0xfffe, 5, 1);
    const auto back = ring.collect_all();
    ASSERT_EQ(back.size(), 1u);
    EXPECT_EQ(back[0].head, 0xfffe);
    EXPECT_THAT(ring.violations(), IsEmpty());
  }
}

TEST_F(SplitRingTest, chain_without_room_is_refused) {
  auto ring = make();
  EXPECT_THROW(ring.chain().submit(), std::length_error);
  auto chain = ring.chain();
  for (std::uint64_t i = 0; i < 5; ++i) {
    chain.writable_at(i, 1);
  }
  EXPECT_THROW(chain.submit(), std::length_error);
  EXPECT_THROW(ring.chain().writable(0x1001), std::bad_alloc);
  EXPECT_EQ(ring.free_descriptors(), 4u);
}

TEST(BufferArena, pieces_do_not_overlap_and_join_again) {
  BufferArena arena(0x101, 0x80);  // 0x110 to 0x180
  EXPECT_EQ(arena.free_bytes(), 0x70u);
  EXPECT_EQ(arena.take(0), 0x110u);
  EXPECT_EQ(arena.take(17), 0x120u);
  EXPECT_EQ(arena.take(0x40), 0x140u);
  EXPECT_THROW(arena.take(1), std::bad_alloc);
  arena.give_back(0x110, 0);
  arena.give_back(0x140, 0x40);
  arena.give_back(0x120, 17);
  EXPECT_EQ(arena.take(0x70), 0x110u);
}

TEST(GuestDriverMemory, guest_ram_gets_the_same_bytes) {
  const std::array ranges{GuestRange::make(GuestAddress(0), 0x10000).value()};
  auto ram = GuestMemory::create(ranges, Backing::kAnonymous).value();
  GuestDriverMemory memory(ram);
  SplitRing ring(memory, RingLayout::at(kBase, 4), BufferArena(kBuffers, 0x1000));
  ring.chain().readable(bytes({1, 2, 3})).submit();
  EXPECT_EQ(memory.read_bytes(0x1000, 16), bytes({0x00, 0x40, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(memory.read_bytes(0x1040, 6), bytes({0, 0, 1, 0, 0, 0}));
  EXPECT_EQ(memory.read_bytes(0x4000, 3), bytes({1, 2, 3}));
  memory.write(0x1052, bytes({1, 0}));
  EXPECT_EQ(ring.used_index(), 1);
  EXPECT_EQ(ring.collect_all().size(), 1u);
  EXPECT_THROW(memory.read_bytes(0xffff, 2), std::out_of_range);
}

}  // namespace
}  // namespace mayfly::testing
