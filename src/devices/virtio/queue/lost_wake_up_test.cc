// No wake-up is lost: neither the driver's for the device (want_doorbell()) nor the device's for the driver
// (publish()).
//
// The two are one protocol. A producer moves its index and then looks whether the consumer wants to know; a
// consumer says what it wants and then looks at the index once more. First the protocol itself is explored,
// with every interleaving of memory accesses on processors that delay their stores (x86-64's TSO): each
// side's fence turns out to be needed, and both to be enough. Then the queue itself runs against the driver
// fake, in every order of short steps.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <compare>
#include <cstdint>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "devices/virtio/queue/event_index.h"
#include "devices/virtio/queue/virt_queue.h"
#include "support/virtio_driver/split_ring.h"

namespace mayfly::testing {
namespace {

struct Rules {
  bool event_index = false;
  bool producer_fence = true;  // between the store of the index and the load of the wish
  bool consumer_fence = true;  // between the store of the wish and the load of the index
  bool second_look = true;     // after the store of the wish
};

constexpr std::uint8_t kStart = 253;  // wraps on the way
constexpr std::uint8_t kEntries = 5;

// All there is at one moment. Each side has room for two stores that the other does not see yet.
struct Moment {
  using Buffer = std::array<std::int16_t, 2>;  // -1: none

  std::uint8_t index = kStart;  // in memory
  std::uint8_t wish = 0;        // in memory: the event, or the flag "do not ring"
  bool bell = true;             // a device is told to look when its driver is ready
  Buffer index_store = {-1, -1};
  Buffer wish_store = {-1, -1};

  enum class Producer : std::uint8_t { kMove, kLook, kRing };
  enum class Consumer : std::uint8_t { kAsleep, kSpare, kTake, kWish, kLookAgain };
  Producer producer = Producer::kMove;
  Consumer consumer = Consumer::kAsleep;
  std::uint8_t made = kStart;
  std::uint8_t asked = kStart;  // how far the producer has looked at the wish
  std::uint8_t taken = kStart;

  friend auto operator<=>(const Moment&, const Moment&) = default;
};

bool empty(const Moment::Buffer& buffer) {
  return buffer[0] < 0;
}
bool push(Moment::Buffer& buffer, std::uint8_t value) {
  for (std::int16_t& place : buffer) {
    if (place < 0) {
      place = value;
      return true;
    }
  }
  return false;
}
std::uint8_t pop(Moment::Buffer& buffer) {
  const auto value = static_cast<std::uint8_t>(buffer[0]);
  buffer = {buffer[1], -1};
  return value;
}

class Explorer {
 public:
  explicit Explorer(const Rules& rules) : rules_(rules) {
    Moment first;
    first.wish = rules.event_index ? kStart : 0;
    open_.push_back(first);
  }

  // Whether a moment can come in which all are done or asleep for good, and entries are left.
  bool loses_a_wake_up() {
    while (!open_.empty()) {
      const Moment now = open_.back();
      open_.pop_back();
      if (!known_.insert(now).second) {
        continue;
      }
      const std::size_t before = open_.size();
      stores_arrive(now);
      producer(now);
      consumer(now);
      if (open_.size() == before && now.taken != static_cast<std::uint8_t>(kStart + kEntries)) {
        return true;
      }
    }
    return false;
  }
  std::size_t moments() const { return known_.size(); }

 private:
  void stores_arrive(Moment now) {
    if (!empty(now.index_store)) {
      Moment next = now;
      next.index = pop(next.index_store);
      open_.push_back(next);
    }
    if (!empty(now.wish_store)) {
      now.wish = pop(now.wish_store);
      open_.push_back(now);
    }
  }

  void producer(const Moment& now) {
    const auto left = static_cast<std::uint8_t>(kStart + kEntries - now.made);
    switch (now.producer) {
      case Moment::Producer::kMove:
        for (std::uint8_t batch = 1; batch <= 2 && batch <= left; ++batch) {
          Moment next = now;
          next.made = static_cast<std::uint8_t>(now.made + batch);
          next.producer = Moment::Producer::kLook;
          if (push(next.index_store, next.made)) {
            open_.push_back(next);
          }
        }
        return;
      case Moment::Producer::kLook: {
        if (rules_.producer_fence && !empty(now.index_store)) {
          return;
        }
        Moment next = now;
        next.asked = now.made;
        const bool wanted = rules_.event_index ? passed_event(now.wish, now.asked, now.made) : now.wish == 0;
        next.producer = wanted ? Moment::Producer::kRing : Moment::Producer::kMove;
        open_.push_back(next);
        return;
      }
      case Moment::Producer::kRing:  // leaves the processor's core: all its stores are seen by then
        if (empty(now.index_store)) {
          Moment next = now;
          next.bell = true;
          next.producer = Moment::Producer::kMove;
          open_.push_back(next);
        }
        return;
    }
  }

  void consumer(const Moment& now) {
    Moment next = now;
    switch (now.consumer) {
      case Moment::Consumer::kAsleep:
        if (!now.bell || !empty(now.wish_store)) {
          return;
        }
        next.bell = false;
        next.consumer = Moment::Consumer::kSpare;
        break;
      case Moment::Consumer::kSpare:
        if (!rules_.event_index && !push(next.wish_store, 1)) {
          return;
        }
        next.consumer = Moment::Consumer::kTake;
        break;
      case Moment::Consumer::kTake:
        if (now.index != now.taken) {
          ++next.taken;
        } else {
          next.consumer = Moment::Consumer::kWish;
        }
        break;
      case Moment::Consumer::kWish:
        if (!push(next.wish_store, rules_.event_index ? now.taken : std::uint8_t{0})) {
          return;
        }
        next.consumer = rules_.second_look ? Moment::Consumer::kLookAgain : Moment::Consumer::kAsleep;
        break;
      case Moment::Consumer::kLookAgain:
        if (rules_.consumer_fence && !empty(now.wish_store)) {
          return;
        }
        next.consumer = now.index != now.taken ? Moment::Consumer::kSpare : Moment::Consumer::kAsleep;
        break;
    }
    open_.push_back(next);
  }

  Rules rules_;
  std::vector<Moment> open_;
  std::set<Moment> known_;
};

TEST(WakeUpProtocol, loses_none_in_any_interleaving) {
  for (const bool event_index : {false, true}) {
    Explorer explorer({.event_index = event_index});
    EXPECT_FALSE(explorer.loses_a_wake_up());
    EXPECT_GT(explorer.moments(), 200U);
  }
}

TEST(WakeUpProtocol, loses_one_without_either_fence_or_the_second_look) {
  for (const bool event_index : {false, true}) {
    EXPECT_TRUE(Explorer({.event_index = event_index, .producer_fence = false}).loses_a_wake_up());
    EXPECT_TRUE(Explorer({.event_index = event_index, .consumer_fence = false}).loses_a_wake_up());
    EXPECT_TRUE(Explorer({.event_index = event_index, .second_look = false}).loses_a_wake_up());
  }
}

// --- The queue and the driver fake, step by step ---

class Scene {
 public:
  Scene(GuestMemory& memory, bool event_index)
      : driver_memory_(memory),
        ring_(driver_memory_, layout_, BufferArena(0x4000, 0x1000),
              {.event_idx = event_index, .in_order = false}),
        queue_(std::move(*VirtQueue::create(memory, {.size = layout_.size,
                                                     .descriptor_table = GuestAddress(layout_.descriptors),
                                                     .available_ring = GuestAddress(layout_.available),
                                                     .used_ring = GuestAddress(layout_.used),
                                                     .event_index = event_index}))) {
    ring_.enable_interrupts();
  }

  static constexpr int kActors = 3;
  // One step of the driver's sending, of its interrupt handler, or of the device; false: it has none now.
  bool step(int actor) { return actor == 0 ? send() : actor == 1 ? handle() : work(); }
  void run_to_the_end() {
    bool moved = true;
    while (moved) {
      moved = false;
      for (int actor = 0; actor < kActors; ++actor) {
        moved |= step(actor);
      }
    }
  }
  // Of all that was sent, how much came back and was seen by the driver through its interrupts.
  int missing() const { return kSends - collected_; }
  bool sound() {
    ring_.check_driver_areas();
    return ring_.violations().empty() && queue_.in_flight() == 0;
  }

 private:
  static constexpr int kSends = 4;

  bool send() {
    if (to_ask_) {
      to_ask_ = false;
      bell_ = ring_.should_notify() || bell_;
      return true;
    }
    if (sent_ == kSends) {
      return false;
    }
    ring_.chain().readable_at(0x5000, 1).submit();
    ++sent_;
    to_ask_ = true;
    return true;
  }

  bool handle() {
    switch (handler_) {
      case 0:
        if (!interrupt_) {
          return false;
        }
        interrupt_ = false;
        ring_.disable_interrupts();
        handler_ = 1;
        return true;
      case 1:
        collected_ += static_cast<int>(ring_.collect_all().size());
        handler_ = 2;
        return true;
      default:
        handler_ = ring_.enable_interrupts() ? 1 : 0;
        return true;
    }
  }

  bool work() {
    switch (device_) {
      case 0:
        if (!bell_) {
          return false;
        }
        bell_ = false;
        queue_.spare_doorbell();
        device_ = 1;
        return true;
      case 1: {
        auto chain = queue_.take();
        if (*chain) {
          queue_.complete(std::move(**chain), 0);
        } else {
          device_ = 2;
        }
        return true;
      }
      case 2:
        interrupt_ = queue_.publish() || interrupt_;
        device_ = 3;
        return true;
      default:
        device_ = *queue_.want_doorbell() ? 1 : 0;
        return true;
    }
  }

  GuestDriverMemory driver_memory_;
  RingLayout layout_ = RingLayout::at(0x1000, 4);
  SplitRing ring_;
  VirtQueue queue_;
  bool bell_ = true;
  bool interrupt_ = false;
  bool to_ask_ = false;
  int sent_ = 0;
  int collected_ = 0;
  int handler_ = 0;
  int device_ = 0;
};

TEST(WakeUps, of_queue_and_driver_are_not_lost_in_any_order_of_steps) {
  const std::array ranges = {*GuestRange::make(GuestAddress(0), 0x8000)};
  GuestMemory memory = std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
  constexpr int kSchedules = 3 * 3 * 3 * 3 * 3 * 3 * 3 * 3 * 3;
  for (const bool event_index : {false, true}) {
    for (int schedule = 0; schedule < kSchedules; ++schedule) {
      Scene scene(memory, event_index);
      // The nine digits once more behind themselves: long enough to end in the middle of anything.
      for (int round = 0; round < 2; ++round) {
        for (int digits = schedule, i = 0; i < 9; ++i, digits /= 3) {
          scene.step(digits % 3);
        }
      }
      scene.run_to_the_end();
      ASSERT_EQ(scene.missing(), 0) << "schedule " << schedule << ", event index " << event_index;
      ASSERT_TRUE(scene.sound());
    }
  }
}

// --- The same on two threads ---

// Wakes one sleeper; rung before the sleep, it is not slept at all. Looks for a while before it lets others
// run, so that the other side is met in the middle of what it does.
class Bell {
 public:
  void ring() { rung_ = true; }
  // False where nobody rings for a minute: a wake-up was lost.
  bool sleep() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    for (unsigned looks = 1; !rung_.exchange(false); ++looks) {
      if (looks % 1024 == 0) {
        if (std::chrono::steady_clock::now() > deadline) {
          return false;
        }
        std::this_thread::yield();
      }
    }
    return true;
  }

 private:
  std::atomic<bool> rung_{false};
};

// Each side sleeps as soon as it may, so that the other is about to wake it all the time.
TEST(WakeUps, of_two_threads_are_not_lost) {
  constexpr std::uint64_t kRequests = 40'000;
  const std::array ranges = {*GuestRange::make(GuestAddress(0), 0x8000)};
  for (const bool event_index : {false, true}) {
    GuestMemory memory = std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
    GuestDriverMemory driver_memory(memory);
    const RingLayout layout = RingLayout::at(0x1000, 4);
    SplitRing ring(driver_memory, layout, BufferArena(0x4000, 0x1000),
                   {.event_idx = event_index, .in_order = false});
    VirtQueue queue =
        std::move(*VirtQueue::create(memory, {.size = layout.size,
                                              .descriptor_table = GuestAddress(layout.descriptors),
                                              .available_ring = GuestAddress(layout.available),
                                              .used_ring = GuestAddress(layout.used),
                                              .event_index = event_index}));
    Bell doorbell;
    Bell interrupt;
    ring.enable_interrupts();
    std::thread device([&] {
      std::uint64_t done = 0;
      while (done < kRequests) {
        queue.spare_doorbell();
        for (auto chain = queue.take(); *chain; chain = queue.take()) {
          queue.complete(std::move(**chain), 0);
          ++done;
        }
        if (queue.publish()) {
          interrupt.ring();
        }
        if (!*queue.want_doorbell() && done < kRequests && !doorbell.sleep()) {
          ADD_FAILURE() << "the device is asleep for good after " << done << " requests";
          return;
        }
      }
    });
    std::uint64_t sent = 0;
    std::uint32_t random = 1;
    while (ring.collected() < kRequests) {
      random = random * 1664525 + 1013904223;
      const unsigned pause = (random >> 16) % 256;
      for (unsigned i = 0; i < pause; ++i) {
        static_cast<void>(ring.used_flags());  // takes a little time, and another each round
      }
      for (std::uint64_t burst = 1 + sent % 3; burst > 0 && sent < kRequests && ring.free_descriptors() > 0;
           --burst) {
        ring.chain().readable_at(0x5000, 1).submit();
        ++sent;
        if (ring.should_notify()) {
          doorbell.ring();
        }
      }
      if (!ring.enable_interrupts() && !interrupt.sleep()) {
        ADD_FAILURE() << "the driver is asleep for good after " << ring.collected() << " requests";
        break;
      }
      ring.disable_interrupts();
      ring.collect_all();
    }
    device.join();
    EXPECT_TRUE(ring.violations().empty());
  }
}

}  // namespace
}  // namespace mayfly::testing
