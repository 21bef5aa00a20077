// A guest that rewrites everything while the device works: no access outside RAM, no bound broken, nothing
// aborts.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "devices/virtio/queue/virt_queue.h"

namespace mayfly {
namespace {

constexpr std::uint64_t kRam = 0x10000;
constexpr std::uint64_t kTable = 0x1000;
constexpr std::uint64_t kAvailable = 0x2000;
constexpr std::uint64_t kUsed = 0x3000;
constexpr std::uint64_t kIndirect = 0x4000;
constexpr std::uint32_t kSize = 16;
constexpr int kBursts = 500;
constexpr int kBurst = 100;  // rewrites
constexpr int kLooks = 20'000;

GuestMemory make_memory() {
  const std::array ranges = {*GuestRange::make(GuestAddress(0), kRam)};
  return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
}

// Mostly what could be, so that chains come about and change under the device's eyes.
class RacingGuest {
 public:
  explicit RacingGuest(GuestMemory& memory) : memory_(memory) {}

  void rewrite() {
    switch (pick(8)) {
      case 0:
      case 1:
      case 2:
        return descriptor(kTable + 16 * pick(kSize));
      case 3:
        return descriptor(kIndirect + 16 * pick(kSize));
      case 4:
        return store(kAvailable + 4 + 2 * pick(kSize), static_cast<std::uint16_t>(pick(kSize + 1)));
      case 5:
        index_ = static_cast<std::uint16_t>(index_ + pick(6) - (pick(8) == 0 ? 3 : 0));
        return store(kAvailable + 2, index_);
      case 6:
        return store(kAvailable, static_cast<std::uint16_t>(pick(3)));
      default:
        return store(kAvailable + 4 + 2 * kSize, static_cast<std::uint16_t>(index_ + pick(4)));
    }
  }

 private:
  std::uint32_t pick(std::uint32_t end) { return static_cast<std::uint32_t>(random_()) % end; }
  void store(std::uint64_t address, std::uint16_t value) {
    memory_.slice(GuestAddress(address), sizeof(value))->store<std::uint16_t>(0, value);
  }
  template <typename T>
  void put(std::uint64_t address, T value) {
    static_cast<void>(memory_.write_object(GuestAddress(address), value));
  }
  // Field by field, so that the device meets half-written ones.
  void descriptor(std::uint64_t at) {
    const bool indirect = pick(4) == 0;
    put<std::uint64_t>(at, indirect ? kIndirect : pick(32) == 0 ? kRam - pick(64) : 0x8000 + pick(0x1000));
    put<std::uint32_t>(at + 8, indirect ? 16 * (1 + pick(kSize)) : pick(64));
    put<std::uint16_t>(at + 12, static_cast<std::uint16_t>(indirect        ? 4
                                                           : pick(64) == 0 ? pick(65536)
                                                                           : pick(4)));
    put<std::uint16_t>(at + 14, static_cast<std::uint16_t>(pick(kSize + (pick(16) == 0 ? 1 : 0))));
  }

  GuestMemory& memory_;
  std::mt19937 random_{7};
  std::uint16_t index_ = 0;
};

class Device {
 public:
  Device(GuestMemory& memory, bool event_index) : memory_(memory), event_index_(event_index) { start(); }

  void look() {
    auto taken = queue_->take();
    if (!taken) {
      return start();
    }
    if (*taken) {
      ++chains_;
      check(**taken);
      out_.push_back(std::move(**taken));
    }
    if (out_.size() >= 4 || (!*taken && !out_.empty())) {
      give_back();
    }
    if (!queue_->want_doorbell()) {
      start();
    }
  }

  int chains() const { return chains_; }
  int faults() const { return starts_ - 1; }

 private:
  void start() {
    ++starts_;
    out_.clear();
    const auto index = memory_.slice(GuestAddress(kAvailable + 2), 2)->load<std::uint16_t>(0);
    queue_.emplace(std::move(*VirtQueue::create(memory_,
                                                {.size = kSize,
                                                 .descriptor_table = GuestAddress(kTable),
                                                 .available_ring = GuestAddress(kAvailable),
                                                 .used_ring = GuestAddress(kUsed),
                                                 .event_index = event_index_,
                                                 .indirect = true},
                                                {.next_available = index, .next_used = 0})));
  }

  void check(const DescriptorChain& chain) {
    ASSERT_LE(chain.readable().size() + chain.writable().size(), kSize);
    std::uint64_t total = 0;
    for (const auto slices : {chain.readable(), chain.writable()}) {
      for (const GuestSlice& slice : slices) {
        ASSERT_LE(slice.address().value() + slice.size(), kRam);
        ASSERT_NE(slice.size(), 0U);
        total += slice.size();
      }
    }
    ASSERT_LE(total, UINT32_MAX);
    ASSERT_LE(queue_->in_flight(), kSize);
    // Uses it, as it was checked, whatever the descriptors say by now.
    auto reader = chain.reader();
    auto writer = chain.writer();
    std::vector<std::byte> content(reader.remaining());
    ASSERT_TRUE(reader.read(content));
    ASSERT_TRUE(writer.write_zeroes(writer.remaining()));
  }

  void give_back() {
    if (turn_++ % 3 == 0) {
      queue_->put_back(std::move(out_.back()));
      out_.pop_back();
    }
    for (DescriptorChain& chain : out_) {
      queue_->complete(std::move(chain), 1);
    }
    out_.clear();
    static_cast<void>(queue_->publish());
    if (turn_ % 2 == 0) {
      queue_->spare_doorbell();
    }
    ASSERT_EQ(queue_->in_flight(), 0U);
  }

  GuestMemory& memory_;
  bool event_index_;
  std::optional<VirtQueue> queue_;
  std::vector<DescriptorChain> out_;
  unsigned turn_ = 0;
  int chains_ = 0;
  int starts_ = 0;
};

TEST(RacingGuest, that_rewrites_all_the_while_harms_nobody_else) {
  for (const bool event_index : {false, true}) {
    GuestMemory memory = make_memory();
    std::atomic<int> looks{0};
    std::atomic<bool> done{false};
    std::thread guest([&memory, &looks, &done] {
      RacingGuest racing(memory);
      for (int burst = 0; burst < kBursts; ++burst) {
        const int before = looks;
        for (int i = 0; i < kBurst; ++i) {
          racing.rewrite();
        }
        while (looks < before + kBurst / 4) {  // where the two share a processor: let the device look, too
          std::this_thread::yield();
        }
      }
      done = true;
    });
    Device device(memory, event_index);
    while (!done) {
      device.look();
      ++looks;
    }
    guest.join();
    // Both sorts were met, else it was no race.
    EXPECT_GT(device.chains(), 0);
    EXPECT_GT(device.faults(), 0);
  }
}

// The same work on one thread, a rewrite at a time: repeatable.
TEST(RacingGuest, that_rewrites_between_any_two_steps_harms_nobody_else) {
  GuestMemory memory = make_memory();
  RacingGuest racing(memory);
  Device device(memory, true);
  for (int i = 0; i < kLooks; ++i) {
    racing.rewrite();
    device.look();
  }
  EXPECT_GT(device.chains(), 100);
  EXPECT_GT(device.faults(), 10);
}

}  // namespace
}  // namespace mayfly
