#include "devices/virtio/queue/chain.h"

#include <gtest/gtest.h>

#include <array>
#include <optional>

#include "devices/virtio/queue/virt_queue.h"
#include "support/virtio_driver/split_ring.h"

namespace mayfly::testing {
namespace {

std::vector<std::byte> bytes(std::initializer_list<int> values) {
  std::vector<std::byte> result;
  for (const int value : values) {
    result.push_back(static_cast<std::byte>(value));
  }
  return result;
}

class ChainTest : public ::testing::Test {
 protected:
  ChainTest()
      : queue_(std::move(*VirtQueue::create(memory_, {.size = 16,
                                                      .descriptor_table = GuestAddress(layout_.descriptors),
                                                      .available_ring = GuestAddress(layout_.available),
                                                      .used_ring = GuestAddress(layout_.used),
                                                      .indirect = true}))) {}
  ~ChainTest() override {
    ring_.check_driver_areas();
    EXPECT_EQ(ring_.violations(), std::vector<std::string>());
  }

  static GuestMemory make_memory() {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), 0x10000)};
    return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
  }
  DescriptorChain take() {
    auto taken = queue_.take();
    return std::move(taken.value().value());
  }
  Completion give_back(DescriptorChain chain, std::uint32_t written) {
    queue_.complete(std::move(chain), written);
    EXPECT_TRUE(queue_.publish());
    return ring_.collect().value_or(Completion{});
  }

  GuestMemory memory_ = make_memory();
  GuestDriverMemory driver_memory_{memory_};
  RingLayout layout_ = RingLayout::at(0x1000, 16);
  SplitRing ring_{driver_memory_, layout_, BufferArena(0x4000, 0x8000)};
  VirtQueue queue_;
};

TEST_F(ChainTest, read_across_descriptors_gives_the_bytes_whatever_the_division) {
  ring_.chain().readable(bytes({1})).readable(bytes({2, 3, 4})).readable(bytes({5, 6})).submit();
  auto chain = take();
  auto reader = chain.reader();
  EXPECT_EQ(reader.remaining(), 6U);
  std::vector<std::byte> first(2);
  std::vector<std::byte> rest(4);
  EXPECT_TRUE(reader.read(first));
  EXPECT_EQ(reader.remaining(), 4U);
  EXPECT_TRUE(reader.read(rest));
  EXPECT_EQ(first, bytes({1, 2}));
  EXPECT_EQ(rest, bytes({3, 4, 5, 6}));
  EXPECT_EQ(reader.remaining(), 0U);
  EXPECT_TRUE(reader.read({}));
  give_back(std::move(chain), 0);
}

TEST_F(ChainTest, read_of_more_than_there_is_does_nothing) {
  ring_.chain().readable(bytes({1, 2, 3})).submit();
  auto chain = take();
  auto reader = chain.reader();
  std::vector<std::byte> four(4, std::byte{9});
  EXPECT_FALSE(reader.read(four));
  EXPECT_EQ(four, bytes({9, 9, 9, 9}));
  EXPECT_EQ(reader.remaining(), 3U);
  EXPECT_EQ(reader.read_object<std::uint32_t>(), std::nullopt);
  EXPECT_EQ(reader.read_object<std::uint16_t>(), std::optional<std::uint16_t>(0x0201));
  give_back(std::move(chain), 0);
}

TEST_F(ChainTest, skip_passes_over_slices_and_refuses_more_than_there_is) {
  ring_.chain().readable(bytes({1, 2})).readable(bytes({3, 4})).readable(bytes({5})).submit();
  auto chain = take();
  auto reader = chain.reader();
  EXPECT_TRUE(reader.skip(3));
  EXPECT_FALSE(reader.skip(3));
  EXPECT_TRUE(reader.skip(0));
  EXPECT_EQ(reader.read_object<std::uint8_t>(), std::optional<std::uint8_t>(4));
  EXPECT_TRUE(reader.skip(1));
  EXPECT_EQ(reader.read_object<std::uint8_t>(), std::nullopt);
  give_back(std::move(chain), 0);
}

TEST_F(ChainTest, take_names_where_the_bytes_lie_one_entry_a_slice) {
  ring_.chain().readable(bytes({1, 2, 3})).readable(bytes({4, 5, 6})).readable(bytes({7})).submit();
  auto chain = take();
  auto reader = chain.reader();
  ASSERT_TRUE(reader.skip(1));
  std::vector<iovec> parts;
  EXPECT_FALSE(reader.take(7, parts));
  EXPECT_TRUE(parts.empty());
  EXPECT_TRUE(reader.take(4, parts));
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_EQ(parts[0].iov_len, 2U);
  EXPECT_EQ(parts[1].iov_len, 2U);
  const std::vector<GuestSlice> slices(chain.readable().begin(), chain.readable().end());
  ASSERT_EQ(slices.size(), 3U);
  EXPECT_EQ(parts[0].iov_base, slices[0].part(1, 2).for_system_call().iov_base);
  EXPECT_EQ(parts[1].iov_base, slices[1].for_system_call().iov_base);
  EXPECT_TRUE(reader.take(2, parts));
  EXPECT_EQ(parts.size(), 4U);
  EXPECT_EQ(reader.remaining(), 0U);
  give_back(std::move(chain), 0);
}

TEST_F(ChainTest, write_fills_device_writable_bytes_only_and_in_order) {
  ring_.chain().readable(bytes({1, 2})).writable(2).writable(1).writable(4).submit();
  auto chain = take();
  EXPECT_EQ(chain.reader().remaining(), 2U);
  auto writer = chain.writer();
  EXPECT_EQ(writer.remaining(), 7U);
  EXPECT_TRUE(writer.write(bytes({10, 11, 12, 13})));
  EXPECT_TRUE(writer.write_object(std::uint16_t{0x0f0e}));
  EXPECT_FALSE(writer.write(bytes({1, 2})));
  EXPECT_TRUE(writer.write_zeroes(1));
  EXPECT_FALSE(writer.write_zeroes(1));
  // The fake holds the readable buffer against what it wrote there.
  const auto done = give_back(std::move(chain), 7);
  EXPECT_EQ(done.writable, bytes({10, 11, 12, 13, 0x0e, 0x0f, 0}));
}

TEST_F(ChainTest, two_readers_of_a_chain_do_not_know_of_each_other) {
  ring_.chain().readable(bytes({1, 2})).submit();
  auto chain = take();
  auto first = chain.reader();
  ASSERT_TRUE(first.skip(2));
  EXPECT_EQ(chain.reader().read_object<std::uint16_t>(), std::optional<std::uint16_t>(0x0201));
  give_back(std::move(chain), 0);
}

TEST_F(ChainTest, moved_from_has_no_slices) {
  ring_.chain().readable(bytes({1, 2})).writable(2).submit();
  auto chain = take();
  auto other = std::move(chain);
  EXPECT_TRUE(chain.readable().empty());  // NOLINT(bugprone-use-after-move): what is promised of it
  EXPECT_TRUE(chain.writable().empty());
  EXPECT_EQ(chain.reader().remaining(), 0U);
  EXPECT_EQ(other.readable().size(), 1U);
  give_back(std::move(other), 0);
}

TEST_F(ChainTest, without_bytes_is_a_chain) {
  ring_.chain().writable(4).with_length(0).submit();
  auto chain = take();
  EXPECT_TRUE(chain.readable().empty());
  EXPECT_TRUE(chain.writable().empty());
  EXPECT_FALSE(chain.writer().write(bytes({1})));
  EXPECT_EQ(give_back(std::move(chain), 0).length, 0U);
}

}  // namespace
}  // namespace mayfly::testing
