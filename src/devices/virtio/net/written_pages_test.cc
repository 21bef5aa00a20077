// All that a network device brings into guest memory is noted, for snapshots: every page whose bytes changed
// while the device worked must be in the record, whatever became of the frame.
#include "support/written_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/fake_event.h"
#include "support/memory_net_backend.h"
#include "support/net_guest.h"

namespace mayfly::testing {
namespace {

using ::testing::Ge;
using ::testing::IsEmpty;
using ::testing::SizeIs;

const MacAddress kMac{{0x06, 0, 0xac, 0x10, 0, 2}};
constexpr std::uint64_t kMerged = NetGuest::kPlainDriver | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_CSUM |
                                  VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4;
constexpr std::uint64_t kPairs = kMerged | VIRTIO_NET_F_MQ | VIRTIO_NET_F_CTRL_VQ;

std::uint64_t g_now = 1'000'000'000;
constexpr Clock kTestClock{[] { return g_now; }, [] { return g_now; }};

// Does what a port may: of the room that it is given for a frame it overwrites also what the frame does not
// need.
class GreedyPort final : public NetPort {
 public:
  int fd() const override { return inner.fd(); }
  Status send(const NetHeader& header, ChainReader frame) override { return inner.send(header, frame); }
  Received receive(NetHeader& header, ChainWriter frame, std::span<std::byte> rest) override {
    const Received received = inner.receive(header, frame, rest);
    if (received.status == Status::kDone) {
      ++filling_;
      frame.skip(std::min<std::uint64_t>(received.bytes, frame.remaining()));
      frame.write(std::vector<std::byte>(frame.remaining(), std::byte{filling_}));
    }
    return received;
  }

  MemoryNetPort inner;

 private:
  std::uint8_t filling_ = 0;
};

class GreedyBackend final : public NetBackend {
 public:
  explicit GreedyBackend(std::size_t pairs) : ports_(pairs) {}

  std::size_t pairs() const override { return ports_.size(); }
  GreedyPort& port(std::size_t pair) override { return ports_[pair]; }
  NetOffloads offloads() const override {
    return {.checksum = true, .tso4 = true, .tso6 = true, .ufo = true};
  }
  Result<void> set_offloads(const NetOffloads& /*offloads*/) override { return {}; }
  Result<void> use_pairs(std::size_t /*pairs*/) override { return {}; }

 private:
  std::vector<GreedyPort> ports_;
};

class NetWrites : public ::testing::Test {
 protected:
  void start(std::uint64_t features, std::size_t pairs = 1) {
    auto backend = std::make_unique<GreedyBackend>(pairs);
    backend_ = backend.get();
    static int made = 0;
    guest_ = std::make_unique<NetGuest>(
        NetDeviceSettings{.id = "written" + std::to_string(made++), .mac = kMac, .clock = &kTestClock},
        std::move(backend), registrar_);
    pages_ = std::make_unique<WrittenPages>(guest_->memory());
    guest_->start(features);
  }
  void TearDown() override {
    for (auto& ring : guest_->rings()) {
      ring->check_driver_areas();
      EXPECT_THAT(ring->violations(), IsEmpty());
    }
  }

  void run() {
    const int bell = guest_->transport().doorbell().get();
    for (pollfd ready{.fd = bell, .events = POLLIN, .revents = 0}; ::poll(&ready, 1, 0) == 1;) {
      registrar_.notify_readable(bell);
    }
  }
  void ring_doorbell(std::size_t queue) {
    guest_->driver().notify(static_cast<std::uint16_t>(queue));
    run();
  }
  // A frame of random bytes, and no two alike.
  std::vector<std::byte> frame_of(std::size_t size) {
    std::vector<std::byte> bytes(size);
    std::ranges::generate(bytes, [this] { return static_cast<std::byte>(random_()); });
    return bytes;
  }
  void arrive(std::size_t size, std::size_t pair = 0) {
    MemoryNetPort& port = backend_->port(pair).inner;
    port.to_driver.push_back({NetHeader{}, frame_of(size)});
    registrar_.notify_readable(port.fd());
    run();
  }
  void save() {
    const MutexLock lock(guest_->device().mutex());
    static_cast<void>(guest_->device().save());
  }
  std::size_t frames() {
    std::size_t count = 0;
    while (guest_->next_frame()) {
      ++count;
    }
    return count;
  }
  WrittenPages::Found during(const std::string& what, const std::function<void()>& act) {
    return pages_->during(what, act);
  }
  // Chains of descriptors for receiving, of several pages each.
  void add_rx(std::size_t buffers, std::uint32_t bytes) {
    guest_->add_rx(buffers, bytes);
    ring_doorbell(0);
  }
  // For one frame of that size too small: it waits for more, and fills these two pages meanwhile.
  void offer_too_little() { add_rx(1, 8192); }
  static constexpr std::size_t kTooLarge = 12000;

  ManualRegistrar registrar_;
  GreedyBackend* backend_ = nullptr;
  std::unique_ptr<NetGuest> guest_;
  std::unique_ptr<WrittenPages> pages_;
  std::minstd_rand random_{1};
};

class NetWritesWith : public NetWrites, public ::testing::WithParamInterface<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(features, NetWritesWith,
                         ::testing::Values(NetGuest::kPlainDriver,
                                           NetGuest::kPlainDriver | kFeatureEventIndex, kMerged,
                                           kMerged | kFeatureEventIndex | kFeatureInOrder),
                         [](const auto& with) {
                           return std::string((with.param & VIRTIO_NET_F_MRG_RXBUF) != 0 ? "merged"
                                                                                         : "plain") +
                                  ((with.param & kFeatureEventIndex) != 0 ? "_event_index" : "");
                         });

TEST_P(NetWritesWith, frames_that_are_received) {
  start(GetParam());
  for (int round = 0; round < 3; ++round) {
    guest_->add_rx(60, 4096);
    for (const std::size_t size : {60U, 1514U, 900U}) {
      const auto found = during("receive", [&] {
        ring_doorbell(0);
        arrive(size);
      });
      EXPECT_THAT(found.changed, SizeIs(Ge(2U))) << "a buffer, and the used ring";
    }
    EXPECT_EQ(frames(), 3U);
  }
}

TEST_P(NetWritesWith, frames_that_are_sent) {
  start(GetParam());
  for (int round = 0; round < 3; ++round) {
    guest_->send({}, frame_of(1514));
    const auto found = during("send", [&] { ring_doorbell(1); });
    EXPECT_THAT(found.noted, SizeIs(2)) << "the used rings, and nothing of the frame";
    EXPECT_THAT(guest_->tx().collect_all(), SizeIs(1));
  }
}

// Tried in a buffer, and not what the driver may be given: the buffer stays for the next one.
TEST_P(NetWritesWith, a_frame_that_is_refused_after_it_came) {
  start(GetParam());
  add_rx(2, 4096);
  const auto found = during("refuse", [&] {
    arrive(10);
    save();
  });
  EXPECT_THAT(found.changed, SizeIs(Ge(1U)));
  EXPECT_EQ(frames(), 0U);
  EXPECT_THAT(during("the next",
                     [&] {
                       ring_doorbell(0);
                       arrive(60);
                     })
                  .changed,
              SizeIs(Ge(2U)));
  EXPECT_EQ(frames(), 1U);
}

TEST_P(NetWritesWith, what_was_tried_when_the_queue_stops_or_the_device_is_reset) {
  for (const bool stops : {true, false}) {
    start(GetParam());
    add_rx(4, 4096);
    const auto found = during(stops ? "stop" : "reset", [&] {
      arrive(10);
      ASSERT_TRUE(stops ? guest_->driver().stop_queue(0) : guest_->driver().reset());
    });
    EXPECT_THAT(found.changed, SizeIs(Ge(1U)));
    if (!stops) {
      EXPECT_THAT(during("nothing any more", [&] { save(); }).changed, IsEmpty());
    }
  }
}

TEST_P(NetWritesWith, what_was_tried_when_the_driver_breaks_the_queue) {
  start(GetParam());
  add_rx(2, 4096);
  const auto found = during("broken", [&] {
    arrive(10);
    guest_->rx().write_available_index(5000);
    guest_->tx().write_available_index(5000);
    ring_doorbell(0);
    save();
  });
  EXPECT_TRUE(guest_->driver().needs_reset());
  EXPECT_THAT(found.changed, SizeIs(Ge(1U)));
  guest_->rings().clear();
}

class NetWritesMerged : public NetWrites {};

// Buffers that were tried and not needed are the device's still: until it is asked for its state.
TEST_F(NetWritesMerged, a_frame_over_many_buffers) {
  start(kMerged);
  guest_->add_rx(100, 2048);
  for (const std::size_t size : {1000U, 65000U, 1000U, 20000U}) {
    const auto found = during("receive", [&] {
      ring_doorbell(0);
      arrive(size);
      save();
    });
    EXPECT_THAT(found.changed, SizeIs(Ge(1 + size / kGuestPage)));
    EXPECT_EQ(frames(), 1U);
  }
}

TEST_F(NetWritesMerged, a_frame_that_waited_for_buffers) {
  start(kMerged);
  offer_too_little();
  const auto found = during("complete", [&] {
    arrive(kTooLarge);
    EXPECT_EQ(frames(), 0U);
    guest_->add_rx(1, 8192);
    ring_doorbell(0);
  });
  EXPECT_THAT(found.changed, SizeIs(Ge(4U)));
  EXPECT_EQ(frames(), 1U);
}

TEST_F(NetWritesMerged, a_frame_that_waited_in_vain) {
  const std::vector<std::function<void()>> ends = {
      [] {},
      [this] {
        g_now += 200'000'000;
        registrar_.advance(std::chrono::milliseconds(200));
        run();
      },
      [this] { ASSERT_TRUE(guest_->driver().stop_queue(0)); },
      [this] { ASSERT_TRUE(guest_->driver().reset()); },
  };
  for (const auto& end : ends) {
    start(kMerged);
    offer_too_little();
    const auto found = during("wait in vain", [&] {
      arrive(kTooLarge);
      end();
      save();
    });
    EXPECT_THAT(found.changed, SizeIs(Ge(2U)));
    EXPECT_EQ(frames(), 0U);
  }
}

TEST_F(NetWritesMerged, the_control_queue_and_a_pair_that_it_stops) {
  start(kPairs, 2);
  const auto use_pairs = [this](std::uint8_t pairs) {
    const std::array bytes = {std::byte{4}, std::byte{0}, std::byte{pairs}, std::byte{0}};
    guest_->control().chain().readable(bytes).writable(1).submit();
    const auto found = during("control", [&] { ring_doorbell(4); });
    EXPECT_THAT(found.changed, SizeIs(Ge(2U))) << "the status, and the used ring";
    const auto done = guest_->control().collect();
    ASSERT_TRUE(done);
    EXPECT_EQ(done->writable[0], std::byte{pairs == 9 ? std::uint8_t{1} : std::uint8_t{0}});
  };
  use_pairs(9);  // refused
  use_pairs(2);
  guest_->add_rx(4, 4096, 1);
  ring_doorbell(2);
  const std::array bytes = {std::byte{4}, std::byte{0}, std::byte{1}, std::byte{0}};
  guest_->control().chain().readable(bytes).writable(1).submit();
  const auto found = during("a pair with a refused frame", [&] {
    arrive(10, 1);
    ring_doorbell(4);
  });
  EXPECT_THAT(found.changed, SizeIs(Ge(3U)));
}

}  // namespace
}  // namespace mayfly::testing
