// What a queue writes to guest memory, and what is written to its chains, is noted.
#include "support/written_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "devices/virtio/queue/virt_queue.h"
#include "support/virtio_driver/split_ring.h"

namespace mayfly::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Each field of the used ring lies on a page of its own: flags and index at the end of the first, entries on
// the next two, avail_event behind them.
constexpr RingLayout kLayout{.descriptors = 0x10000, .available = 0x20000, .used = 0x30ffc, .size = 1024};
constexpr std::uint64_t kIndexPage = 0x30000;
constexpr std::uint64_t kEntriesPage = 0x31000;
constexpr std::uint64_t kMoreEntriesPage = 0x32000;
constexpr std::uint64_t kEventPage = 0x33000;

class QueueWrites : public ::testing::TestWithParam<bool> {
 protected:
  static GuestMemory make_memory() {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), 0x80000)};
    return GuestMemory::create(ranges, Backing::kAnonymous).value();
  }

  void SetUp() override {
    ring_.emplace(driver_memory_, kLayout, BufferArena(0x70000, 0x10000),
                  RingFeatures{.event_idx = GetParam(), .in_order = false});
    queue_.emplace(VirtQueue::create(memory_, {.size = kLayout.size,
                                               .descriptor_table = GuestAddress(kLayout.descriptors),
                                               .available_ring = GuestAddress(kLayout.available),
                                               .used_ring = GuestAddress(kLayout.used),
                                               .event_index = GetParam(),
                                               .indirect = true})
                       .value());
  }
  DescriptorChain take() { return std::move(queue_->take().value().value()); }

  // Two device-writable buffers, of which the second spans two pages, behind a device-readable one.
  void offer() {
    ring_->chain().readable_at(0x40000, 16).writable_at(0x50000, 16).writable_at(0x60fff, 2).submit();
  }
  static void write_to(const DescriptorChain& chain) {
    EXPECT_TRUE(chain.writer().write(std::vector<std::byte>(18, std::byte{0x77})));
  }
  static void write_last_of(const DescriptorChain& chain) {
    ChainWriter writer = chain.writer();
    EXPECT_TRUE(writer.skip(17) && writer.write_object(std::uint8_t{1}));
  }

  GuestMemory memory_ = make_memory();
  WrittenPages pages_{memory_};
  GuestDriverMemory driver_memory_{memory_};
  std::optional<SplitRing> ring_;
  std::optional<VirtQueue> queue_;
};
INSTANTIATE_TEST_SUITE_P(features, QueueWrites, ::testing::Bool(),
                         [](const auto& with) { return with.param ? "event_index" : "flags"; });

TEST_P(QueueWrites, a_completed_chain_is_noted_whole_whatever_was_told_as_written) {
  offer();
  std::optional<DescriptorChain> chain;
  EXPECT_THAT(pages_.during("take", [&] { chain = take(); }).noted, IsEmpty());
  EXPECT_THAT(pages_.during("move", [&] { chain.emplace(DescriptorChain(std::move(*chain))); }).noted,
              IsEmpty());
  const auto completed = pages_.during("complete", [&] {
    write_to(*chain);
    queue_->complete(std::move(*chain), 0);
  });
  EXPECT_THAT(completed.noted, ElementsAre(kEntriesPage, 0x50000, 0x60000, 0x61000));
  const auto published = pages_.during("publish", [&] { static_cast<void>(queue_->publish()); });
  EXPECT_THAT(published.changed, ElementsAre(kIndexPage));
  EXPECT_THAT(published.noted, ElementsAre(kIndexPage));
  EXPECT_THAT(pages_.during("publish", [&] { static_cast<void>(queue_->publish()); }).noted, IsEmpty());
}

TEST_P(QueueWrites, a_chain_that_is_put_back_or_dropped_is_noted_too) {
  offer();
  const std::vector<std::uint64_t> all = {0x50000, 0x60000, 0x61000};
  EXPECT_EQ(pages_
                .during("put back",
                        [&] {
                          DescriptorChain chain = take();
                          write_to(chain);
                          queue_->put_back(std::move(chain));
                        })
                .noted,
            all);
  ring_->chain().writable_at(0x51000, 16).submit();
  EXPECT_EQ(pages_
                .during("drop for another",
                        [&] {
                          DescriptorChain chain = take();
                          write_last_of(chain);
                          chain = take();
                          queue_->put_back(std::move(chain));
                        })
                .noted,
            (std::vector<std::uint64_t>{0x50000, 0x51000, 0x60000, 0x61000}));
  pages_.during("the queue goes first", [&] {
    const DescriptorChain chain = take();
    EXPECT_TRUE(chain.writer().write_object(std::uint8_t{0x77}));
    queue_.reset();
  });
}

TEST_P(QueueWrites, all_of_the_used_ring_that_is_written_is_noted) {
  const std::uint64_t doorbell = GetParam() ? kEventPage : kIndexPage;
  ring_->chain().readable_at(0x40000, 16).submit();
  for (int round = 0; round < 600; ++round) {
    DescriptorChain chain = take();
    const auto done = pages_.during("complete", [&] { queue_->complete(std::move(chain), 0); });
    ASSERT_THAT(done.noted, ElementsAre(round < 512 ? kEntriesPage : kMoreEntriesPage)) << round;
    static_cast<void>(queue_->publish());
    ASSERT_TRUE(ring_->collect());
    ring_->chain().readable_at(0x40000, 16).submit();
  }
  const auto spared = pages_.during("spare_doorbell", [&] { queue_->spare_doorbell(); });
  EXPECT_EQ(spared.noted, GetParam() ? std::vector<std::uint64_t>{} : std::vector{kIndexPage});
  const auto wanted = pages_.during("want_doorbell", [&] { EXPECT_TRUE(queue_->want_doorbell()); });
  EXPECT_THAT(wanted.changed, ElementsAre(doorbell));
  EXPECT_THAT(wanted.noted, ElementsAre(doorbell));
}

}  // namespace
}  // namespace mayfly::testing
