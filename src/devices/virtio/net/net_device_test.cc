#include "devices/virtio/net/net_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>
#include <vector>

#include "support/allocation_count.h"
#include "support/fake_event.h"
#include "support/memory_net_backend.h"
#include "support/net_guest.h"

namespace mayfly {
namespace {

using namespace std::chrono_literals;
using testing::Completion;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::ManualRegistrar;
using testing::MemoryNetBackend;
using testing::MemoryNetPort;
using testing::NetFrame;
using testing::NetGuest;
using ::testing::SizeIs;

const MacAddress kMac{{0x06, 0, 0xac, 0x10, 0, 2}};
constexpr NetOffloads kAll{.checksum = true, .tso4 = true, .tso6 = true, .ufo = true};
constexpr std::uint64_t kPlain = NetGuest::kPlainDriver;
constexpr std::uint64_t kEverything = ~std::uint64_t{0};

std::vector<std::byte> frame_of(std::size_t size, unsigned seed = 1) {
  std::vector<std::byte> bytes(size);
  std::minstd_rand random(seed);
  for (auto& byte : bytes) {
    byte = static_cast<std::byte>(random());
  }
  for (std::size_t index = 0; index < 6 && index + 6 < size; ++index) {
    bytes[6 + index] = static_cast<std::byte>(kMac.octets[index]);
  }
  return bytes;
}

RateLimiterConfig operations(const TokenBucketConfig& bucket) {
  return {.bandwidth = std::nullopt, .ops = bucket};
}
RateLimiterConfig bytes_over_time(const TokenBucketConfig& bucket) {
  return {.bandwidth = bucket, .ops = std::nullopt};
}

std::uint64_t g_now = 1'000'000'000;
constexpr Clock kTestClock{[] { return g_now; }, [] { return g_now; }};

class NetDeviceTest : public ::testing::Test {
 protected:
  // 5.1.6.5: what a command ends with.
  static constexpr int kOk = 0;
  static constexpr int kError = 1;

  void make(NetDeviceSettings settings = {}, std::size_t pairs = 1, NetOffloads offloads = kAll) {
    auto backend = std::make_unique<MemoryNetBackend>(pairs, offloads);
    backend_ = backend.get();
    // The metrics of an id live as long as the process: each test has its own.
    static int made = 0;
    settings.id = "test" + std::to_string(made++);
    settings.mac = kMac;
    settings.clock = &kTestClock;
    guest_ = std::make_unique<NetGuest>(settings, std::move(backend), registrar_);
    metrics_ = &metrics().net_device(settings.id);
  }
  void TearDown() override {
    if (!guest_) {
      return;
    }
    for (auto& ring : guest_->rings()) {
      if (expect_no_violations_) {
        EXPECT_THAT(ring->violations(), IsEmpty());
        ring->check_driver_areas();
        EXPECT_THAT(ring->violations(), IsEmpty());
      }
    }
  }

  MemoryNetPort& port(std::size_t pair = 0) { return backend_->port(pair); }
  NetDevice& device() { return guest_->device(); }
  NetMetrics& counts() { return *metrics_; }

  void run() { guest_->run_until_quiet(registrar_); }
  void ring_doorbell(std::uint16_t queue) {
    guest_->driver().notify(queue);
    run();
  }
  // What the device answers on the control queue, or nothing where it gives no answer.
  std::optional<int> command(std::initializer_list<int> bytes, std::uint32_t answer_bytes = 1) {
    std::vector<std::byte> request;
    for (const int byte : bytes) {
      request.push_back(static_cast<std::byte>(byte));
    }
    auto chain = guest_->control().chain();
    chain.readable(request);
    if (answer_bytes != 0) {
      chain.writable(answer_bytes);
    }
    chain.submit();
    ring_doorbell(static_cast<std::uint16_t>(guest_->rings().size() - 1));
    const auto done = guest_->control().collect();
    if (!done || done->length != 1) {
      return std::nullopt;
    }
    return std::to_integer<int>(done->writable[0]);
  }
  void arrive(std::vector<std::byte> bytes, NetHeader header = {}, std::size_t pair = 0) {
    port(pair).to_driver.push_back({header, std::move(bytes)});
    registrar_.notify_readable(port(pair).fd());
    run();
  }
  void pass(std::chrono::nanoseconds time) {
    g_now += static_cast<std::uint64_t>(time.count());
    registrar_.advance(time);
    run();
  }
  std::optional<Interest> waits_for(std::size_t pair = 0) { return registrar_.interest(port(pair).fd()); }

  ManualRegistrar registrar_;
  std::unique_ptr<NetGuest> guest_;
  MemoryNetBackend* backend_ = nullptr;
  NetMetrics* metrics_ = nullptr;
  bool expect_no_violations_ = true;
};

// --- Features and configuration: 5.1.3, 5.1.4 ---

TEST_F(NetDeviceTest, features_follow_the_back_end) {
  make();
  const std::uint64_t base = VIRTIO_NET_F_MAC | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_MRG_RXBUF |
                             kFeatureVersion1 | kFeatureInOrder | kFeatureIndirectDesc | kFeatureEventIndex;
  EXPECT_EQ(device().features(), base | VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_HOST_TSO4 |
                                     VIRTIO_NET_F_HOST_TSO6 | VIRTIO_NET_F_HOST_UFO |
                                     VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6 |
                                     VIRTIO_NET_F_GUEST_UFO);
  EXPECT_THAT(device().queue_limits(), SizeIs(2));
  EXPECT_EQ(device().type(), 1U);

  make({.mtu = 9000}, 1, {});
  EXPECT_EQ(device().features(), base | VIRTIO_NET_F_MTU);

  make({}, 8, {});
  EXPECT_EQ(device().features(), base | VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_MQ);
  EXPECT_THAT(device().queue_limits(), SizeIs(17));
}

TEST_F(NetDeviceTest, configuration_space_says_what_was_configured) {
  make({.mtu = 9000}, 4);
  auto& driver = guest_->driver();
  for (std::size_t index = 0; index < 6; ++index) {
    EXPECT_EQ(driver.config_u8(index), kMac.octets[index]);
  }
  EXPECT_EQ(driver.config_u16(6), 1);  // VIRTIO_NET_S_LINK_UP
  EXPECT_EQ(driver.config_u16(8), 4);
  EXPECT_EQ(driver.config_u16(10), 9000);
  EXPECT_EQ(driver.config_u32(12), 0U);
  std::array<std::uint8_t, 8> past{};
  past.fill(0xff);
  guest_->transport().bus_read(0x100 + 8, past);
  EXPECT_EQ(past, (std::array<std::uint8_t, 8>{4, 0, 0x28, 0x23, 0, 0, 0, 0}));
}

TEST_F(NetDeviceTest, configuration_space_cannot_be_written) {
  make();
  guest_->start(kPlain);
  guest_->driver().write_config_u8(0, 0xee);
  EXPECT_EQ(guest_->driver().config_u8(0), kMac.octets[0]);
  EXPECT_EQ(counts().cfg_fails.value(), 1U);
}

TEST_F(NetDeviceTest, offloads_of_the_driver_reach_the_back_end) {
  make();
  guest_->start(kPlain | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO6);
  EXPECT_EQ(backend_->set, (NetOffloads{.checksum = true, .tso6 = true}));
  guest_->start(kPlain | VIRTIO_NET_F_GUEST_TSO4);  // 5.1.3.1: not without the checksum
  EXPECT_EQ(backend_->set, NetOffloads{});
}

// --- From the driver: 5.1.6.2 ---

TEST_F(NetDeviceTest, sent_frame_goes_out_with_its_header) {
  make();
  guest_->start(kPlain | VIRTIO_NET_F_CSUM | VIRTIO_NET_F_HOST_TSO4);
  const NetHeader header{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                         .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                         .hdr_len = 54,
                         .gso_size = 1448,
                         .csum_start = 34,
                         .csum_offset = 16};
  guest_->send(header, frame_of(40000));
  ring_doorbell(1);

  ASSERT_THAT(port().from_driver, SizeIs(1));
  EXPECT_EQ(port().from_driver[0], (NetFrame{header, frame_of(40000)}));
  const auto done = guest_->tx().collect_all();
  ASSERT_THAT(done, SizeIs(1));
  EXPECT_EQ(done[0].length, 0U);
  EXPECT_EQ(guest_->line().count(), 1);
  EXPECT_EQ(counts().tx_packets_count.value(), 1U);
  EXPECT_EQ(counts().tx_bytes_count.value(), 40000U);
  EXPECT_EQ(counts().tx_spoofed_mac_count.value(), 0U);
}

TEST_F(NetDeviceTest, frames_however_they_are_divided_go_out_whole_and_in_order) {
  make();
  guest_->start(kEverything);
  std::minstd_rand random(7);
  std::vector<NetFrame> expected;
  std::vector<std::uint16_t> heads;
  std::vector<std::uint16_t> returned;
  for (unsigned count = 0; count < 500; ++count) {
    const auto frame = frame_of(14 + random() % 3000, count);
    const auto all = NetGuest::with_header({}, frame);
    auto chain = guest_->tx().chain();
    const std::size_t pieces = 1 + random() % 8;
    std::size_t start = 0;
    for (std::size_t piece = 0; piece < pieces; ++piece) {
      const std::size_t left = all.size() - start;
      const std::size_t size = piece + 1 == pieces ? left
                               : random() % 4 == 0 ? left / 2
                                                   : std::min<std::size_t>(left, random() % 20);
      chain.readable(std::span(all).subspan(start, size));
      start += size;
    }
    if (random() % 2 == 0) {
      chain.indirect();
    }
    heads.push_back(chain.submit());
    expected.push_back({{}, frame});
    if (random() % 3 == 0) {
      ring_doorbell(1);
      for (const Completion& done : guest_->tx().collect_all()) {
        returned.push_back(done.head);
      }
    }
  }
  ring_doorbell(1);
  for (const Completion& done : guest_->tx().collect_all()) {
    returned.push_back(done.head);
  }
  EXPECT_EQ(port().from_driver, expected);
  EXPECT_EQ(returned, heads);  // VIRTIO_F_IN_ORDER
}

TEST_F(NetDeviceTest, malformed_frames_are_counted_returned_and_not_sent) {
  make();
  guest_->start(kPlain | VIRTIO_NET_F_CSUM | VIRTIO_NET_F_HOST_TSO4);
  auto& tx = guest_->tx();
  tx.chain().readable(frame_of(11)).submit();                                     // no whole header
  tx.chain().writable(100).submit();                                              // nothing to send
  guest_->send({}, frame_of(13));                                                 // no Ethernet header
  guest_->send({}, frame_of(kMaxFrame + 1));                                      // no frame is that large
  guest_->send({.flags = 1, .csum_start = 90, .csum_offset = 9}, frame_of(100));  // the sum lies outside
  guest_->send({.flags = 1, .gso_type = VIRTIO_NET_HDR_GSO_TCPV6, .gso_size = 9},
               frame_of(100));                                                         // not negotiated
  guest_->send({.gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 9}, frame_of(100));  // without the checksum
  guest_->send({}, frame_of(14));
  guest_->send({}, frame_of(kMaxFrame));
  ring_doorbell(1);

  EXPECT_EQ(counts().tx_malformed_frames.value(), 7U);
  EXPECT_THAT(port().from_driver, SizeIs(2));
  EXPECT_THAT(tx.collect_all(), SizeIs(9));
}

TEST_F(NetDeviceTest, checksum_that_was_not_negotiated_is_malformed) {
  make();
  guest_->start(kPlain);
  guest_->send({.flags = 1, .csum_start = 34, .csum_offset = 16}, frame_of(100));
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, IsEmpty());
  EXPECT_EQ(counts().tx_malformed_frames.value(), 1U);
}

TEST_F(NetDeviceTest, another_source_address_is_counted_and_sent) {
  make();
  guest_->start(kPlain);
  auto frame = frame_of(100);
  frame[11] = std::byte{0x77};
  guest_->send({}, frame);
  ring_doorbell(1);
  EXPECT_EQ(counts().tx_spoofed_mac_count.value(), 1U);
  EXPECT_THAT(port().from_driver, SizeIs(1));
}

TEST_F(NetDeviceTest, frame_without_room_waits_and_keeps_its_place) {
  make();
  guest_->start(kPlain);
  port().room = 2;
  for (unsigned count = 0; count < 4; ++count) {
    guest_->send({}, frame_of(60, count));
  }
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(2));
  EXPECT_THAT(guest_->tx().collect_all(), SizeIs(2));
  EXPECT_EQ(waits_for(), Interest::kWritable);

  const std::size_t calls = port().send_calls;
  ring_doorbell(1);
  EXPECT_EQ(port().send_calls, calls);  // it makes no sense to try before there is room

  port().room = SIZE_MAX;
  registrar_.notify_writable(port().fd());
  ASSERT_THAT(port().from_driver, SizeIs(4));
  for (unsigned count = 0; count < 4; ++count) {
    EXPECT_EQ(port().from_driver[count].bytes, frame_of(60, count));
  }
  EXPECT_THAT(guest_->tx().collect_all(), SizeIs(2));
  EXPECT_EQ(waits_for(), std::nullopt);
}

TEST_F(NetDeviceTest, frame_that_the_host_refuses_is_lost_and_counted) {
  make();
  guest_->start(kPlain);
  port().next_send = NetPort::Status::kFailed;
  guest_->send({}, frame_of(60));
  ring_doorbell(1);
  EXPECT_EQ(counts().tx_fails.value(), 1U);
  EXPECT_EQ(counts().tap_write_fails.value(), 1U);
  EXPECT_EQ(counts().tx_packets_count.value(), 0U);
  EXPECT_THAT(guest_->tx().collect_all(), SizeIs(1));
  EXPECT_TRUE(device().link_up());
}

TEST_F(NetDeviceTest, batch_of_frames_is_one_interrupt) {
  make();
  guest_->start(kPlain);
  for (std::size_t count = 0; count < NetDevice::kBatchFrames; ++count) {
    guest_->send({}, frame_of(60));
  }
  ring_doorbell(1);
  EXPECT_EQ(guest_->line().count(), 1);
  EXPECT_EQ(port().send_calls, NetDevice::kBatchFrames);
  EXPECT_THAT(guest_->tx().collect_all(), SizeIs(NetDevice::kBatchFrames));
}

// --- To the driver: 5.1.6.3, 5.1.6.4 ---

TEST_F(NetDeviceTest, received_frame_takes_one_buffer_without_merging) {
  make();
  guest_->start(kPlain);
  guest_->add_rx(3, 1526);
  ring_doorbell(0);
  EXPECT_EQ(port().last_room, 1526U - 12);
  arrive(frame_of(1514), {.num_buffers = 99});
  const auto frame = guest_->next_frame();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->header, (NetHeader{.num_buffers = 1}));
  EXPECT_EQ(frame->bytes, frame_of(1514));
  EXPECT_FALSE(guest_->rx().collect());
  EXPECT_EQ(counts().rx_packets_count.value(), 1U);
  EXPECT_EQ(counts().rx_bytes_count.value(), 1514U);
}

TEST_F(NetDeviceTest, frame_larger_than_the_buffer_is_lost_without_merging) {
  make();
  guest_->start(kPlain);
  guest_->add_rx(2, 512);
  ring_doorbell(0);
  arrive(frame_of(501));
  EXPECT_FALSE(guest_->rx().collect());
  EXPECT_EQ(counts().rx_fails.value(), 1U);
  arrive(frame_of(500));
  EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(500));
}

TEST_F(NetDeviceTest, received_frame_fills_all_buffers_but_the_last_when_merging) {
  make();
  guest_->start(kEverything);
  guest_->rx().chain().writable(100).submit();
  guest_->rx().chain().writable(60).writable(40).submit();
  guest_->rx().chain().writable(200).indirect().submit();
  guest_->rx().chain().writable(70000).submit();
  ring_doorbell(0);
  arrive(frame_of(250));
  const auto buffers = guest_->rx().collect_all();
  ASSERT_THAT(buffers, SizeIs(3));
  EXPECT_EQ(buffers[0].length, 100U);
  EXPECT_EQ(buffers[1].length, 100U);
  EXPECT_EQ(buffers[2].length, 62U);
  EXPECT_EQ(std::to_integer<int>(buffers[0].writable[10]), 3);  // num_buffers
  std::vector<std::byte> bytes(buffers[0].written().begin() + 12, buffers[0].written().end());
  bytes.insert(bytes.end(), buffers[1].written().begin(), buffers[1].written().end());
  bytes.insert(bytes.end(), buffers[2].written().begin(), buffers[2].written().end());
  EXPECT_EQ(bytes, frame_of(250));
  arrive(frame_of(60, 2));
  EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(60, 2));
}

TEST_F(NetDeviceTest, frames_of_all_sizes_arrive_whole_and_in_order) {
  for (const std::uint64_t features : {kEverything, kEverything & ~kFeatureEventIndex}) {
    make();
    guest_->start(features);
    std::minstd_rand random(11);
    std::deque<std::vector<std::byte>> expected;
    std::size_t received = 0;
    auto collect = [&] {
      while (const auto frame = guest_->next_frame()) {
        ASSERT_FALSE(expected.empty());
        ASSERT_EQ(frame->bytes, expected.front());
        expected.pop_front();
        ++received;
      }
    };
    for (unsigned count = 0; count < 3000; ++count) {
      while (guest_->rx().outstanding() < 200 && random() % 40 != 0) {
        auto chain = guest_->rx().chain();
        for (std::size_t piece = 1 + random() % 3; piece != 0 && guest_->rx().free_descriptors() > 8;
             --piece) {
          chain.writable(12 + static_cast<std::uint32_t>(random() % 1500));
        }
        chain.writable(12);
        if (random() % 2 == 0) {
          chain.indirect();
        }
        chain.submit();
        if (guest_->rx().free_descriptors() <= 8) {
          break;
        }
      }
      if (guest_->rx().should_notify()) {  // and not otherwise: the device must ask
        ring_doorbell(0);
      }
      const std::size_t size = random() % 20 == 0 ? 14 + random() % (kMaxFrame - 14) : 14 + random() % 1500;
      expected.push_back(frame_of(size, count));
      arrive(expected.back());
      collect();
    }
    for (int round = 0; round < 2000 && !expected.empty(); ++round) {
      if (guest_->rx().outstanding() < 200 && guest_->rx().free_descriptors() > 8) {
        guest_->add_rx(1, 4096);
      }
      if (guest_->rx().should_notify()) {
        ring_doorbell(0);
      }
      registrar_.notify_readable(port().fd());
      run();
      collect();
    }
    EXPECT_EQ(received, 3000U);
    EXPECT_EQ(counts().rx_fails.value(), 0U);
    TearDown();
  }
}

TEST_F(NetDeviceTest, without_buffers_nothing_is_received_until_the_doorbell) {
  make();
  guest_->start(kPlain);
  ring_doorbell(0);
  EXPECT_EQ(waits_for(), std::nullopt);
  EXPECT_GE(counts().no_rx_avail_buffer.value(), 1U);
  arrive(frame_of(60));
  EXPECT_THAT(port().to_driver, SizeIs(1));
  EXPECT_EQ(port().receive_calls, 0U);
  guest_->add_rx(1, 1526);
  ring_doorbell(0);
  EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(60));
}

TEST_F(NetDeviceTest, frame_with_too_few_buffers_waits_for_more) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(4, 1000);
  ring_doorbell(0);
  arrive(frame_of(6000));
  EXPECT_FALSE(guest_->rx().collect());
  EXPECT_EQ(waits_for(), std::nullopt);
  guest_->add_rx(1, 1000);
  ring_doorbell(0);
  EXPECT_FALSE(guest_->rx().collect());
  guest_->add_rx(2, 1000);
  ring_doorbell(0);
  const auto frame = guest_->next_frame();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->header.num_buffers, 7);
  EXPECT_EQ(frame->bytes, frame_of(6000));
  EXPECT_EQ(counts().rx_fails.value(), 0U);
}

TEST_F(NetDeviceTest,
       after_a_small_frame_the_next_is_offered_few_buffers_and_arrives_whole_whatever_its_size) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(60, 1526);
  ring_doorbell(0);
  for (const std::size_t size : {std::size_t{60}, std::size_t{9000}, std::size_t{9000}, std::size_t{100}}) {
    arrive(frame_of(size));
    const auto frame = guest_->next_frame();
    ASSERT_TRUE(frame) << size;
    EXPECT_EQ(frame->bytes, frame_of(size));
    EXPECT_FALSE(guest_->rx().collect());
    // Of what was offered to the next.
    if (size <= NetDevice::kSmallFrame) {
      EXPECT_EQ(port().last_room, 2 * 1526U - 12);
    } else {
      EXPECT_GT(port().last_room, kMaxFrame);
    }
  }
  EXPECT_EQ(counts().rx_fails.value(), 0U);
}

TEST_F(NetDeviceTest, frame_that_waits_too_long_for_buffers_is_lost) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(4, 1000);
  ring_doorbell(0);
  arrive(frame_of(6000));
  pass(NetDevice::kMaxHold - 1ms);
  EXPECT_EQ(counts().rx_fails.value(), 0U);
  pass(1ms);
  EXPECT_EQ(counts().rx_fails.value(), 1U);
  EXPECT_EQ(waits_for(), Interest::kReadable);
  arrive(frame_of(60, 3));
  EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(60, 3));
}

TEST_F(NetDeviceTest, frame_larger_than_a_full_queue_is_lost_at_once) {
  make();
  guest_->start(kEverything, 4);
  guest_->add_rx(4, 1000);
  ring_doorbell(0);
  arrive(frame_of(6000));
  EXPECT_EQ(counts().rx_fails.value(), 1U);
  arrive(frame_of(3900));
  EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(3900));
}

TEST_F(NetDeviceTest, what_the_driver_did_not_negotiate_it_is_not_given) {
  make();
  guest_->start(kPlain | VIRTIO_NET_F_MRG_RXBUF);
  guest_->add_rx(20, 1526);
  ring_doorbell(0);
  const NetHeader partial{.flags = 1, .csum_start = 34, .csum_offset = 16};
  arrive(frame_of(100), partial);
  NetHeader segments = partial;
  segments.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
  segments.gso_size = 1448;
  arrive(frame_of(3000), segments);
  EXPECT_FALSE(guest_->rx().collect());
  EXPECT_EQ(counts().rx_fails.value(), 2U);
  arrive(frame_of(100), {.flags = VIRTIO_NET_HDR_F_DATA_VALID});
  EXPECT_EQ(guest_->next_frame().value().header.flags, 0);
}

TEST_F(NetDeviceTest, negotiated_offloads_are_passed_on) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(100, 1526);
  ring_doorbell(0);
  NetHeader header{.flags = 1 | 0x40,
                   .gso_type = VIRTIO_NET_HDR_GSO_TCPV6,
                   .hdr_len = 74,
                   .gso_size = 1400,
                   .csum_start = 54,
                   .csum_offset = 16};
  arrive(frame_of(60000), header);
  const auto frame = guest_->next_frame().value();
  header.flags = 1;  // 5.1.6.4.1: no other
  header.num_buffers = 40;
  EXPECT_EQ(frame.header, header);
  EXPECT_EQ(frame.bytes, frame_of(60000));
}

TEST_F(NetDeviceTest, frames_beyond_the_mtu_are_not_passed_on) {
  make({.mtu = 1000});
  guest_->start(kPlain | VIRTIO_NET_F_MTU);
  guest_->add_rx(5, 2000);
  ring_doorbell(0);
  arrive(frame_of(1015));
  EXPECT_FALSE(guest_->rx().collect());
  EXPECT_EQ(counts().rx_fails.value(), 1U);
  arrive(frame_of(1014));
  EXPECT_EQ(guest_->next_frame().value().bytes.size(), 1014U);
  auto tagged = frame_of(1018);
  tagged[12] = std::byte{0x81};
  tagged[13] = std::byte{0};
  arrive(tagged);
  EXPECT_EQ(guest_->next_frame().value().bytes, tagged);
  tagged.push_back(std::byte{0});
  arrive(tagged);
  EXPECT_FALSE(guest_->rx().collect());
}

// 5.1.4.1
TEST_F(NetDeviceTest, frames_of_the_mtu_go_out_whole) {
  for (const std::uint16_t mtu : {std::uint16_t{68}, std::uint16_t{1000}, std::uint16_t{9000}}) {
    make({.mtu = mtu});
    guest_->start(kPlain | VIRTIO_NET_F_MTU);
    guest_->send({}, frame_of(14U + mtu));
    ring_doorbell(1);
    ASSERT_THAT(port().from_driver, SizeIs(1)) << mtu;
    EXPECT_EQ(port().from_driver[0].bytes, frame_of(14U + mtu));
    EXPECT_EQ(port().from_driver[0].header.gso_type, VIRTIO_NET_HDR_GSO_NONE);
  }
}

// 5.1.6.4.1: who sets DATA_VALID has validated the checksum, which is not us.
TEST_F(NetDeviceTest, checksum_is_valid_only_where_the_back_end_says_so) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(20, 1526);
  ring_doorbell(0);
  for (const std::uint8_t flags : {std::uint8_t{0}, VIRTIO_NET_HDR_F_DATA_VALID}) {
    arrive(frame_of(100), {.flags = flags});
    EXPECT_EQ(guest_->next_frame().value().header.flags, flags);
  }
}

TEST_F(NetDeviceTest, mtu_not_negotiated_limits_nothing) {
  make({.mtu = 1000});
  guest_->start(kPlain);
  guest_->add_rx(1, 2000);
  ring_doorbell(0);
  arrive(frame_of(1514));
  EXPECT_TRUE(guest_->next_frame());
}

TEST_F(NetDeviceTest, buffers_come_back_in_the_order_in_which_they_were_given) {
  make();
  guest_->start(kEverything);
  std::vector<std::uint16_t> heads;
  heads.reserve(100);
  for (int count = 0; count < 100; ++count) {
    heads.push_back(guest_->rx().chain().writable(1526).submit());
  }
  ring_doorbell(0);
  std::vector<std::uint16_t> returned;
  for (unsigned count = 0; count < 50; ++count) {
    arrive(frame_of(2000, count));
  }
  for (const Completion& done : guest_->rx().collect_all()) {
    returned.push_back(done.head);
  }
  EXPECT_EQ(returned, heads);
}

// --- Hostile drivers ---

TEST_F(NetDeviceTest, receive_buffer_without_room_for_a_header_needs_a_reset) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(1, 11);
  ring_doorbell(0);
  EXPECT_TRUE(guest_->driver().needs_reset());
  guest_->start(kEverything);
  guest_->add_rx(1, 100);
  ring_doorbell(0);
  arrive(frame_of(60));
  EXPECT_TRUE(guest_->next_frame());
}

TEST_F(NetDeviceTest, broken_queue_needs_a_reset_and_touches_nothing_until_then) {
  for (const std::uint16_t queue : std::array<std::uint16_t, 3>{0, 1, 4}) {
    make({}, 2);
    guest_->start(kEverything);
    guest_->rings().at(queue)->write_available_index(300);
    ring_doorbell(queue);
    EXPECT_TRUE(guest_->driver().needs_reset());
    EXPECT_EQ(waits_for(), std::nullopt);
    arrive(frame_of(60));
    EXPECT_THAT(port().to_driver, SizeIs(1));
    EXPECT_FALSE(registrar_.notify_writable(port().fd()));

    guest_->start(kEverything);
    EXPECT_FALSE(guest_->driver().needs_reset());
    guest_->add_rx(50, 1526);
    ring_doorbell(0);
    EXPECT_TRUE(guest_->next_frame());
    guest_->send({}, frame_of(60));
    ring_doorbell(1);
    EXPECT_THAT(port().from_driver, SizeIs(1));
  }
}

TEST_F(NetDeviceTest, queues_that_cannot_be_are_counted) {
  make();
  auto& driver = guest_->driver();
  ASSERT_TRUE(driver.negotiate(kPlain));
  driver.set_up_queue(0, {.descriptors = 0x10, .available = 0x10, .used = 0x10, .size = 8});
  driver.driver_ok();
  EXPECT_TRUE(driver.needs_reset());
  EXPECT_EQ(counts().activate_fails.value(), 1U);
  run();
  guest_->process();
}

// --- Reset, stop, save ---

TEST_F(NetDeviceTest, reset_in_any_state_and_all_works_again) {
  make({.rx_rate_limiter = operations(TokenBucketConfig{.size = 3, .refill_time_ms = 100})});
  for (int state = 0; state < 5; ++state) {
    guest_->start(kEverything);
    switch (state) {
      case 1:  // buffers taken ahead
        guest_->add_rx(40, 1526);
        ring_doorbell(0);
        break;
      case 2:  // a frame waits for buffers
        guest_->add_rx(2, 1526);
        ring_doorbell(0);
        arrive(frame_of(6000));
        break;
      case 3:  // a frame waits for room
        port().room = 0;
        guest_->send({}, frame_of(60));
        ring_doorbell(1);
        break;
      case 4:  // a frame waits for tokens
        guest_->add_rx(40, 1526);
        ring_doorbell(0);
        for (unsigned count = 0; count < 5; ++count) {
          arrive(frame_of(60, count));
        }
        break;
      default:
        break;
    }
    ASSERT_TRUE(guest_->driver().reset());
    port().room = SIZE_MAX;
    port().to_driver.clear();
    port().from_driver.clear();
    const auto before = guest_->line().count();
    registrar_.notify(port().fd(), {.readable = true, .writable = true});
    pass(1s);
    EXPECT_EQ(guest_->line().count(), before) << state;
    EXPECT_EQ(waits_for(), std::nullopt) << state;

    guest_->start(kEverything);
    guest_->add_rx(40, 1526);
    ring_doorbell(0);
    arrive(frame_of(100));
    EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(100)) << state;
    guest_->send({}, frame_of(60));
    ring_doorbell(1);
    EXPECT_THAT(port().from_driver, SizeIs(1)) << state;
    pass(1s);
  }
}

TEST_F(NetDeviceTest, stopped_queue_is_left_alone) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(4, 1526);
  guest_->send({}, frame_of(60));
  ring_doorbell(0);
  ASSERT_TRUE(guest_->driver().stop_queue(0));
  arrive(frame_of(60));
  EXPECT_FALSE(guest_->rx().collect());
  guest_->send({}, frame_of(60));
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(2));
  ASSERT_TRUE(guest_->driver().stop_queue(1));
  guest_->send({}, frame_of(60));
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(2));
}

TEST_F(NetDeviceTest, saved_state_has_no_chain_outside_its_queue) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(40, 1526);
  ring_doorbell(0);
  arrive(frame_of(3000));
  const MutexLock lock(device().mutex());
  const NetDeviceState state = device().save();
  EXPECT_TRUE(state.live);
  EXPECT_TRUE(state.link_up);
  EXPECT_EQ(state.mac, kMac);
  EXPECT_EQ(state.pairs_in_use, 1U);
  ASSERT_THAT(state.queues, SizeIs(2));
  EXPECT_EQ(state.queues[0]->next_available, 2);
  EXPECT_EQ(state.queues[0]->next_used, 2);
}

TEST_F(NetDeviceTest, device_goes_on_after_it_was_saved) {
  make();
  guest_->start(kEverything);
  guest_->add_rx(40, 1526);
  ring_doorbell(0);
  {
    const MutexLock lock(device().mutex());
    device().save();
  }
  arrive(frame_of(3000));
  guest_->process();
  EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(3000));
}

TEST_F(NetDeviceTest, restored_device_goes_on_in_the_middle_of_its_rings) {
  make({.tx_rate_limiter = operations({.size = 6, .refill_time_ms = 1000})});
  guest_->start(kEverything, 16);
  guest_->add_rx(12, 1526);
  ring_doorbell(0);
  for (unsigned seed = 0; seed < 5; ++seed) {
    arrive(frame_of(3000, seed));  // two buffers each
    guest_->send({}, frame_of(60, seed));
  }
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(5));
  for (unsigned seed = 0; seed < 5; ++seed) {
    EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(3000, seed));
    EXPECT_TRUE(guest_->tx().collect());
  }
  guest_->add_rx(10, 1526);  // and of these nobody has told the device
  const int interrupts = guest_->line().count();
  const std::string other_id = "moved";
  NetDeviceSettings settings{.id = other_id, .mac = kMac, .clock = &kTestClock};
  auto backend = std::make_unique<MemoryNetBackend>(1, kAll);
  backend_ = backend.get();
  guest_->move_to(settings, std::move(backend), registrar_);
  EXPECT_GE(guest_->line().count(), interrupts);
  run();
  EXPECT_EQ(backend_->set, kAll) << "the back end knows what was negotiated";
  // Around the end of both rings, and on the other side of it.
  for (unsigned seed = 0; seed < 6; ++seed) {
    arrive(frame_of(3000, 10 + seed));
    EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(3000, 10 + seed));
  }
  guest_->send({}, frame_of(60, 20));
  guest_->send({}, frame_of(60, 21));
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(1)) << "the limiter is as empty as it was";
  pass(1s);
  EXPECT_THAT(port().from_driver, SizeIs(2));
  EXPECT_EQ(port().from_driver[1].bytes, frame_of(60, 21));
}

TEST_F(NetDeviceTest, restored_device_uses_the_pairs_that_were_in_use) {
  make({}, 4);
  guest_->start(kEverything);
  ASSERT_EQ(command({4, 0, 3, 0}), kOk);
  ASSERT_EQ(backend_->in_use, 3U);
  auto backend = std::make_unique<MemoryNetBackend>(4, kAll);
  backend_ = backend.get();
  guest_->move_to({.id = "moved_pairs", .mac = kMac, .clock = &kTestClock}, std::move(backend), registrar_);
  guest_->add_rx(4, 1526, 2);
  run();
  EXPECT_EQ(backend_->in_use, 3U);
  arrive(frame_of(100), {}, 2);
  EXPECT_EQ(guest_->next_frame(2).value().bytes, frame_of(100));
  // Not any more after a reset.
  guest_->start(kPlain);
  run();
  EXPECT_EQ(backend_->in_use, 1U);
}

TEST_F(NetDeviceTest, driver_is_told_once_of_another_address_after_a_restore) {
  make();
  guest_->start(kEverything);
  const auto generation = guest_->driver().read_register(testing::mmio::kConfigGeneration);
  const auto changes = [this] { return guest_->driver().handle_interrupt() & 2U; };
  const auto move = [this](const std::string& id, const MacAddress& mac) {
    auto backend = std::make_unique<MemoryNetBackend>(1, kAll);
    backend_ = backend.get();
    guest_->move_to({.id = id, .mac = mac, .clock = &kTestClock}, std::move(backend), registrar_);
  };
  constexpr MacAddress kOther{{6, 0, 0xac, 0, 1, 2}};
  static_cast<void>(changes());
  move("moved_same_mac", kMac);
  EXPECT_EQ(changes(), 0U);
  EXPECT_EQ(guest_->driver().read_register(testing::mmio::kConfigGeneration), generation);
  move("moved_other_mac", kOther);
  EXPECT_EQ(guest_->driver().config_u16(4), 0x0201);
  EXPECT_NE(guest_->driver().read_register(testing::mmio::kConfigGeneration), generation);
  EXPECT_EQ(changes(), 2U);
  // It is the device's own from now on.
  move("moved_again", kOther);
  EXPECT_EQ(changes(), 0U);
}

TEST_F(NetDeviceTest, state_that_cannot_be_is_refused_and_changes_nothing) {
  make({}, 2);
  guest_->start(kEverything);
  NetDeviceState good;
  {
    const MutexLock lock(device().mutex());
    good = device().save();
  }
  make({}, 2, {});  // another host, whose tap has no offloads
  const auto refusal = [this](const NetDeviceState& state) {
    const MutexLock lock(device().mutex());
    const auto restored = device().restore(state);
    return restored ? std::string() : restored.error().message();
  };
  EXPECT_THAT(refusal(good), HasSubstr("features that it does not offer"));
  good.features = device().features();
  NetDeviceState bad = good;
  bad.queues.pop_back();
  EXPECT_THAT(refusal(bad), HasSubstr("4 queues"));
  for (const std::size_t pairs : {std::size_t{0}, std::size_t{3}, SIZE_MAX}) {
    bad = good;
    bad.pairs_in_use = pairs;
    EXPECT_THAT(refusal(bad), HasSubstr("pairs"));
  }
  bad = good;
  bad.pairs_in_use = 2;
  bad.features &= ~VIRTIO_NET_F_MQ;
  EXPECT_THAT(refusal(bad), HasSubstr("pairs"));
  bad = good;
  bad.tx_rate_limiter.ops =
      TokenBucketState{.config = {.size = 1, .refill_time_ms = 1}, .tokens = UINT64_MAX};
  EXPECT_THAT(refusal(bad), HasSubstr("restore"));
  EXPECT_TRUE(device().link_up());
  EXPECT_EQ(refusal(good), "");
}

// Also one whose driver has stopped queues of pairs in use, or has made all of them useless: it is for the
// driver to have its queues, and for no restore to fail over them.
TEST_F(NetDeviceTest, pairs_in_use_may_lack_queues_when_they_are_restored) {
  expect_no_violations_ = false;
  for (const bool broken : {false, true}) {
    make({}, 4);
    guest_->start(kEverything);
    ASSERT_EQ(command({4, 0, 3, 0}), kOk);
    ASSERT_EQ(backend_->in_use, 3U);
    if (broken) {
      guest_->tx().write_available_index(1000);
      ring_doorbell(1);
    } else {
      ASSERT_TRUE(guest_->driver().stop_queue(2));
      ASSERT_TRUE(guest_->driver().stop_queue(3));
    }
    auto backend = std::make_unique<MemoryNetBackend>(4, kAll);
    backend_ = backend.get();
    guest_->move_to({.id = "moved_stopped", .mac = kMac, .clock = &kTestClock}, std::move(backend),
                    registrar_);
    EXPECT_EQ(guest_->driver().needs_reset(), broken);
    if (!broken) {
      guest_->send({}, frame_of(60));
      ring_doorbell(1);
      EXPECT_EQ(backend_->in_use, 3U);
      EXPECT_THAT(port().from_driver, SizeIs(1));
    }
  }
}

TEST_F(NetDeviceTest, queues_that_its_features_do_not_have_are_restored_as_they_were) {
  make({}, 2);
  guest_->start(kPlain);
  ASSERT_TRUE(guest_->driver().reset());
  ASSERT_TRUE(guest_->driver().negotiate(kPlain));
  for (std::uint16_t queue = 0; queue < 5; ++queue) {
    ASSERT_TRUE(guest_->driver().set_up_queue(
        queue, testing::RingLayout::at(0x10000 + std::uint64_t{queue} * 0x10000, 16)));
  }
  guest_->driver().driver_ok();
  ASSERT_TRUE(guest_->driver().stop_queue(3));
  for (int again = 0; again < 2; ++again) {
    auto backend = std::make_unique<MemoryNetBackend>(2, kAll);
    backend_ = backend.get();
    guest_->move_to({.id = "moved_idle", .mac = kMac, .clock = &kTestClock}, std::move(backend), registrar_);
    EXPECT_FALSE(guest_->driver().needs_reset());
    const auto registers = guest_->transport().state();
    EXPECT_TRUE(registers.queues[4].ready);
    EXPECT_FALSE(registers.queues[3].ready);
  }
}

TEST_F(NetDeviceTest, device_that_needs_a_reset_is_saved_without_its_queues) {
  expect_no_violations_ = false;
  make();
  guest_->start(kEverything);
  guest_->add_rx(4, 1526);
  ring_doorbell(0);
  guest_->tx().write_available_index(1000);
  ring_doorbell(1);
  ASSERT_TRUE(guest_->driver().needs_reset());
  auto backend = std::make_unique<MemoryNetBackend>(1, kAll);
  backend_ = backend.get();
  guest_->move_to({.id = "moved_broken", .mac = kMac, .clock = &kTestClock}, std::move(backend), registrar_);
  EXPECT_TRUE(guest_->driver().needs_reset());
  arrive(frame_of(60));
  EXPECT_FALSE(guest_->rx().collect());
  expect_no_violations_ = true;
  guest_->start(kEverything);
  guest_->add_rx(4, 1526);
  ring_doorbell(0);
  EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(60));
}

// --- Notifications: 2.7.7, 2.7.10 ---

TEST_F(NetDeviceTest, doorbells_that_the_device_asks_for_are_enough) {
  for (const std::uint64_t features : {kEverything, kEverything & ~kFeatureEventIndex}) {
    make();
    guest_->start(features);
    std::minstd_rand random(3);
    unsigned sent = 0;
    for (int round = 0; round < 4000; ++round) {
      if (random() % 5 == 0) {
        port().room = random() % 4;
      }
      for (std::size_t count = random() % 4; count != 0 && guest_->tx().free_descriptors() >= 2; --count) {
        guest_->send({}, frame_of(20, sent++));
      }
      if (guest_->tx().should_notify()) {
        ring_doorbell(1);
      }
      if (port().room > 0) {
        registrar_.notify_writable(port().fd());
      }
      guest_->tx().collect_all();
    }
    port().room = SIZE_MAX;
    registrar_.notify_writable(port().fd());
    guest_->tx().collect_all();
    EXPECT_EQ(guest_->tx().outstanding(), 0U);
    ASSERT_THAT(port().from_driver, SizeIs(sent));
    for (unsigned count = 0; count < sent; ++count) {
      ASSERT_EQ(port().from_driver[count].bytes, frame_of(20, count));
    }
    TearDown();
  }
}

TEST_F(NetDeviceTest, interrupts_that_the_driver_does_not_want_do_not_come) {
  make();
  guest_->start(kEverything);
  guest_->tx().disable_interrupts();
  const auto before = guest_->line().count();
  guest_->send({}, frame_of(60));
  ring_doorbell(1);
  EXPECT_THAT(guest_->tx().collect_all(), SizeIs(1));
  EXPECT_EQ(guest_->line().count(), before);
}

// --- The control queue and several pairs: 5.1.6.5 ---

class NetControl : public NetDeviceTest {};

TEST_F(NetControl, pairs_are_used_only_once_the_driver_says_so) {
  make({}, 4);
  guest_->start(kEverything);
  for (std::size_t pair = 0; pair < 4; ++pair) {
    guest_->add_rx(50, 1526, pair);
    ring_doorbell(static_cast<std::uint16_t>(2 * pair));
    arrive(frame_of(60), {}, pair);
    EXPECT_EQ(guest_->next_frame(pair).has_value(), pair == 0);
  }
  EXPECT_EQ(backend_->in_use, 1U);

  EXPECT_EQ(command({4, 0, 3, 0}), kOk);
  EXPECT_EQ(backend_->in_use, 3U);
  for (std::size_t pair = 1; pair < 4; ++pair) {
    EXPECT_EQ(guest_->next_frame(pair).has_value(), pair < 3);
    guest_->send({}, frame_of(60), pair);
    ring_doorbell(static_cast<std::uint16_t>(2 * pair + 1));
    EXPECT_EQ(port(pair).from_driver.size(), pair < 3 ? 1U : 0U);
  }

  EXPECT_EQ(command({4, 0, 1, 0}), kOk);
  EXPECT_EQ(backend_->in_use, 1U);
  arrive(frame_of(60), {}, 1);
  EXPECT_FALSE(guest_->next_frame(1));
  EXPECT_EQ(waits_for(1), std::nullopt);

  EXPECT_EQ(command({4, 0, 4, 0}), kOk);
  EXPECT_TRUE(guest_->next_frame(1));
  EXPECT_TRUE(guest_->next_frame(3));

  guest_->start(kEverything);  // 5.1.6.5.6.2: after a reset only the first
  EXPECT_EQ(backend_->in_use, 1U);
}

TEST_F(NetControl, commands_that_change_nothing_do_not_reach_the_back_end) {
  make({}, 4);
  guest_->start(kEverything);
  const std::size_t before = backend_->use_pairs_calls;
  EXPECT_EQ(command({4, 0, 1, 0}), kOk);
  EXPECT_EQ(backend_->use_pairs_calls, before);
  EXPECT_EQ(command({4, 0, 3, 0}), kOk);
  EXPECT_EQ(command({4, 0, 3, 0}), kOk);
  EXPECT_EQ(backend_->use_pairs_calls, before + 1);
  EXPECT_EQ(backend_->in_use, 3U);
}

TEST_F(NetControl, one_round_changes_the_pairs_once) {
  make({}, 4);
  guest_->start(kEverything);
  const auto submit = [this](int pairs) {
    const std::array bytes = {std::byte{4}, std::byte{0}, static_cast<std::byte>(pairs), std::byte{0}};
    guest_->control().chain().readable(bytes).writable(1).indirect().submit();
  };
  for (int count = 0; count < 5; ++count) {
    submit(1);
    submit(4);
  }
  const std::size_t before = backend_->use_pairs_calls;
  guest_->process();
  EXPECT_EQ(backend_->use_pairs_calls, before + NetDevice::kPairChangesPerRound);
  guest_->process();
  EXPECT_EQ(backend_->use_pairs_calls, before + 2 * NetDevice::kPairChangesPerRound);
  // The rest follows without a doorbell.
  run();
  EXPECT_EQ(backend_->use_pairs_calls, before + 9);
  EXPECT_THAT(guest_->control().collect_all(), SizeIs(10));
  EXPECT_EQ(backend_->in_use, 4U);
}

TEST_F(NetControl, bad_commands_are_refused) {
  make({}, 4);
  guest_->start(kEverything);
  EXPECT_EQ(command({4, 0, 0, 0}), kError);
  EXPECT_EQ(command({4, 0, 5, 0}), kError);
  EXPECT_EQ(command({4, 0, 4, 1}), kError);
  EXPECT_EQ(command({4, 0, 2}), kError);
  EXPECT_EQ(command({4}), kError);
  EXPECT_EQ(command({4, 1, 2, 0}), kError);
  EXPECT_EQ(command({0, 0, 1}), kError);
  EXPECT_EQ(backend_->in_use, 1U);
  EXPECT_EQ(counts().event_fails.value(), 7U);
  EXPECT_EQ(command({4, 0, 2, 0}, 0), std::nullopt);  // nowhere to answer
  EXPECT_EQ(counts().event_fails.value(), 8U);
  EXPECT_EQ(command({4, 0, 2, 0}, 3), kOk);
}

TEST_F(NetControl, pairs_whose_queues_are_not_set_up_are_refused) {
  make({}, 4);
  guest_->start(kEverything);
  ASSERT_TRUE(guest_->driver().stop_queue(5));
  EXPECT_EQ(command({4, 0, 3, 0}), kError);
  EXPECT_EQ(command({4, 0, 2, 0}), kOk);
}

TEST_F(NetControl, without_multiqueue_the_control_queue_is_the_third) {
  make({}, 4);
  guest_->start(kPlain | VIRTIO_NET_F_CTRL_VQ);
  ASSERT_THAT(guest_->rings(), SizeIs(3));
  EXPECT_EQ(command({4, 0, 1, 0}), kError);
  guest_->send({}, frame_of(60));
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(1));
}

// --- The link ---

TEST_F(NetDeviceTest, frame_of_the_ports_own_goes_out_after_a_send) {
  make();
  guest_->start(kPlain);
  guest_->add_rx(2, 2000);
  ring_doorbell(0);
  port().own_in = 0ns;
  port().to_driver.push_back({{}, frame_of(60)});
  port().to_driver.push_back({{}, frame_of(61)});
  guest_->send({}, frame_of(70));
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(1));
  EXPECT_EQ(guest_->next_frame()->bytes, frame_of(60));
  EXPECT_EQ(guest_->next_frame()->bytes, frame_of(61));
}

TEST_F(NetDeviceTest, frame_of_the_ports_own_goes_out_in_time) {
  make();
  guest_->start(kPlain);
  guest_->add_rx(1, 2000);
  ring_doorbell(0);
  port().own_in = 5ms;
  port().to_driver.push_back({{}, frame_of(60)});
  guest_->send({}, frame_of(70));
  ring_doorbell(1);
  EXPECT_EQ(registrar_.running_timers(), 1U);
  port().own_in = 1ms;  // it was asked a little early
  pass(5ms);
  EXPECT_FALSE(guest_->next_frame());
  port().own_in = 0ns;
  pass(1ms);
  EXPECT_EQ(guest_->next_frame()->bytes, frame_of(60));
  EXPECT_EQ(registrar_.running_timers(), 0U);
}

TEST_F(NetDeviceTest, frame_of_the_ports_own_waits_for_buffers_in_peace) {
  make();
  guest_->start(kPlain);
  port().own_in = 0ns;
  port().to_driver.push_back({{}, frame_of(60)});
  guest_->send({}, frame_of(70));
  ring_doorbell(1);
  EXPECT_EQ(port().receive_calls, 0U);
  guest_->add_rx(1, 2000);
  ring_doorbell(0);
  EXPECT_EQ(guest_->next_frame()->bytes, frame_of(60));
}

TEST_F(NetDeviceTest, reset_forgets_the_time_of_a_ports_own_frame) {
  make();
  guest_->start(kPlain);
  guest_->add_rx(1, 2000);
  ring_doorbell(0);
  port().own_in = 5ms;
  port().to_driver.push_back({{}, frame_of(60)});
  guest_->send({}, frame_of(70));
  ring_doorbell(1);
  guest_->driver().reset();
  pass(1s);
  EXPECT_EQ(port().receive_calls, 1U);  // the first look for frames
  EXPECT_EQ(registrar_.running_timers(), 0U);
}

TEST_F(NetDeviceTest, other_end_that_goes_takes_the_link_down) {
  make();
  guest_->start(kPlain);
  guest_->add_rx(4, 1526);
  ring_doorbell(0);
  const auto generation = guest_->driver().read_register(testing::mmio::kConfigGeneration);
  port().closed = true;
  registrar_.notify(port().fd(), {.hung_up = true});
  run();

  EXPECT_FALSE(device().link_up());
  EXPECT_EQ(guest_->driver().config_u16(6), 0);
  EXPECT_EQ(guest_->driver().handle_interrupt(), testing::kConfigurationChangeNotification);
  EXPECT_NE(guest_->driver().read_register(testing::mmio::kConfigGeneration), generation);
  EXPECT_EQ(waits_for(), std::nullopt);
  EXPECT_EQ(counts().event_fails.value(), 1U);

  guest_->send({}, frame_of(60));
  ring_doorbell(1);
  EXPECT_THAT(guest_->tx().collect_all(), SizeIs(1));
  EXPECT_EQ(counts().tx_fails.value(), 1U);
  guest_->start(kPlain);
  EXPECT_FALSE(device().link_up());
}

TEST_F(NetDeviceTest, frames_that_wait_for_room_are_returned_when_the_link_goes) {
  make();
  guest_->start(kPlain);
  port().room = 0;
  guest_->send({}, frame_of(60));
  guest_->send({}, frame_of(60));
  ring_doorbell(1);
  port().next_send = NetPort::Status::kClosed;
  registrar_.notify(port().fd(), {.hung_up = true});
  run();
  EXPECT_FALSE(device().link_up());
  EXPECT_THAT(guest_->tx().collect_all(), SizeIs(2));
}

// --- Rate limiters ---

TEST_F(NetDeviceTest, frames_from_the_driver_are_held_to_their_rate) {
  make({.tx_rate_limiter = operations(TokenBucketConfig{.size = 10, .refill_time_ms = 100})});
  guest_->start(kEverything);
  for (unsigned count = 0; count < 25; ++count) {
    guest_->send({}, frame_of(60, count));
  }
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(10));
  EXPECT_EQ(counts().tx_rate_limiter_throttled.value(), 1U);
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(10));
  pass(50ms);
  EXPECT_THAT(port().from_driver, SizeIs(15));
  pass(100ms);
  ASSERT_THAT(port().from_driver, SizeIs(25));
  for (unsigned count = 0; count < 25; ++count) {
    EXPECT_EQ(port().from_driver[count].bytes, frame_of(60, count));
  }
  EXPECT_GE(counts().tx_rate_limiter_event_count.value(), 2U);
  EXPECT_EQ(registrar_.running_timers(), 0U);
}

NetHeader segmented(std::uint16_t size) {
  return {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
          .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
          .hdr_len = 54,
          .gso_size = size,
          .csum_start = 34,
          .csum_offset = 16};
}

TEST_F(NetDeviceTest, frames_that_are_segmented_cost_the_limiter_what_they_become) {
  make({.tx_rate_limiter = operations(TokenBucketConfig{.size = 20, .refill_time_ms = 100})});
  guest_->start(kEverything);
  for (int count = 0; count < 4; ++count) {
    guest_->send(segmented(1000), frame_of(54 + 10'000));
  }
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(2));
  pass(49ms);
  EXPECT_THAT(port().from_driver, SizeIs(2));
  pass(1ms);
  EXPECT_THAT(port().from_driver, SizeIs(3));
  // What found no room is given back whole.
  port().room = 0;
  pass(50ms);
  EXPECT_THAT(port().from_driver, SizeIs(3));
  port().room = 1;
  registrar_.notify_writable(port().fd());
  EXPECT_THAT(port().from_driver, SizeIs(4));

  make({.tx_rate_limiter = bytes_over_time(TokenBucketConfig{.size = 10 * 1054, .refill_time_ms = 100})});
  guest_->start(kEverything);
  guest_->send(segmented(1000), frame_of(54 + 10'000));
  guest_->send({}, frame_of(60));  // for which the first frame's own bytes would have left enough
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(1));
}

TEST_F(NetDeviceTest, one_round_sends_a_bounded_number_of_segments) {
  make();
  ASSERT_NE(guest_->start(kEverything) & VIRTIO_NET_F_HOST_TSO4, 0U);
  // 1000 segments each.
  const auto frame = frame_of(54 + 64'000);
  for (int count = 0; count < 8; ++count) {
    guest_->send(segmented(64), frame);
  }
  guest_->process();
  EXPECT_THAT(port().from_driver, SizeIs(NetDevice::kSegmentsPerRound / 1000 + 1));
  // The rest follows without a doorbell.
  run();
  EXPECT_THAT(port().from_driver, SizeIs(8));
  EXPECT_THAT(guest_->tx().collect_all(), SizeIs(8));
}

TEST_F(NetControl, pairs_share_what_a_round_may_send) {
  make({}, 2);
  guest_->start(kEverything);
  ASSERT_EQ(command({4, 0, 2, 0}), kOk);
  const auto frame = frame_of(54 + 64'000);
  for (int count = 0; count < 8; ++count) {
    guest_->send(segmented(64), frame, 0);
    guest_->send(segmented(64), frame, 1);
  }
  guest_->process();
  EXPECT_THAT(port(0).from_driver, SizeIs(NetDevice::kSegmentsPerRound / 2 / 1000 + 1));
  EXPECT_THAT(port(1).from_driver, SizeIs(NetDevice::kSegmentsPerRound / 2 / 1000 + 1));
}

TEST_F(NetDeviceTest, usual_frames_as_many_as_the_queue_has_are_one_round) {
  make();
  guest_->start(kEverything);
  for (int count = 0; count < 60; ++count) {
    guest_->send(segmented(1448), frame_of(1448 * 3));
    guest_->send({}, frame_of(1514));
  }
  guest_->process();
  EXPECT_THAT(port().from_driver, SizeIs(120));
}

TEST_F(NetDeviceTest, frames_to_the_driver_are_held_to_their_rate) {
  make({.rx_rate_limiter = bytes_over_time(TokenBucketConfig{.size = 10'000, .refill_time_ms = 100})});
  guest_->start(kEverything);
  guest_->add_rx(100, 1526);
  ring_doorbell(0);
  for (unsigned count = 0; count < 25; ++count) {
    arrive(frame_of(1000, count));
  }
  unsigned received = 0;
  const auto collect = [&] {
    while (const auto frame = guest_->next_frame()) {
      EXPECT_EQ(frame->bytes, frame_of(1000, received++));
    }
  };
  collect();
  EXPECT_EQ(received, 10U);
  EXPECT_EQ(waits_for(), std::nullopt);
  ring_doorbell(0);
  collect();
  EXPECT_EQ(received, 10U);
  pass(50ms);
  registrar_.notify_readable(port().fd());
  collect();
  EXPECT_EQ(received, 15U);
  pass(100ms);
  collect();
  EXPECT_EQ(received, 25U);
  EXPECT_EQ(counts().rx_fails.value(), 0U);
}

TEST_F(NetDeviceTest, timers_rest_once_the_device_is_broken) {
  make({.rx_rate_limiter = operations(TokenBucketConfig{.size = 1, .refill_time_ms = 100}),
        .tx_rate_limiter = operations(TokenBucketConfig{.size = 1, .refill_time_ms = 100})});
  guest_->start(kEverything);
  guest_->add_rx(10, 1526);
  guest_->send({}, frame_of(60));
  guest_->send({}, frame_of(60));
  ring_doorbell(0);
  arrive(frame_of(60));
  arrive(frame_of(60));
  EXPECT_EQ(registrar_.running_timers(), 2U);
  guest_->rx().write_available_index(1000);
  guest_->tx().write_available_index(1000);
  pass(1s);
  EXPECT_TRUE(guest_->driver().needs_reset());
  EXPECT_EQ(registrar_.running_timers(), 0U);
}

TEST_F(NetDeviceTest, tokens_of_frames_that_found_no_room_are_given_back) {
  make({.tx_rate_limiter = operations(TokenBucketConfig{.size = 2, .refill_time_ms = 1000000})});
  guest_->start(kPlain);
  port().room = 0;
  guest_->send({}, frame_of(60));
  guest_->send({}, frame_of(60));
  ring_doorbell(1);
  for (int count = 0; count < 5; ++count) {
    registrar_.notify_writable(port().fd());
  }
  port().room = 2;
  registrar_.notify_writable(port().fd());
  EXPECT_THAT(port().from_driver, SizeIs(2));
}

TEST_F(NetDeviceTest, new_limits_let_waiting_frames_go_at_once) {
  make({.tx_rate_limiter = operations(TokenBucketConfig{.size = 1, .refill_time_ms = 100'000})});
  guest_->start(kPlain);
  for (int count = 0; count < 5; ++count) {
    guest_->send({}, frame_of(60));
  }
  ring_doorbell(1);
  EXPECT_THAT(port().from_driver, SizeIs(1));
  {
    const MutexLock lock(device().mutex());
    EXPECT_FALSE(
        device().set_rate_limits({}, operations(TokenBucketConfig{.size = 1, .refill_time_ms = UINT64_MAX})));
    EXPECT_TRUE(device().set_rate_limits({}, operations(TokenBucketConfig{})));
  }
  pass(0ns);
  EXPECT_THAT(port().from_driver, SizeIs(5));
}

TEST_F(NetDeviceTest, limiter_that_cannot_be_is_refused_with_the_interface) {
  const auto device = NetDevice::create(
      {.id = "eth7",
       .mac = kMac,
       .rx_rate_limiter = operations(TokenBucketConfig{.size = 1, .refill_time_ms = UINT64_MAX})},
      std::make_unique<MemoryNetBackend>(), registrar_);
  ASSERT_FALSE(device);
  EXPECT_THAT(device.error().message(), ::testing::StartsWith("interface eth7: "));
}

TEST_F(NetDeviceTest, registrar_that_fails_is_an_error_with_the_interface) {
  registrar_.fail_next(Error(ErrorCode::kIo, "no more watches"));
  const auto device =
      NetDevice::create({.id = "eth7", .mac = kMac}, std::make_unique<MemoryNetBackend>(), registrar_);
  ASSERT_FALSE(device);
  EXPECT_EQ(device.error().message(), "interface eth7: no more watches");
}

// --- Allocations ---

// Takes any frame and has any number of one; allocates nothing itself.
class EndlessBackend final : public NetBackend, public NetPort {
 public:
  int fd() const override { return fd_.get(); }
  Status send(const NetHeader& /*header*/, ChainReader frame) override {
    std::array<std::byte, 64> bytes;
    return frame.read(std::span(bytes).first(std::min<std::size_t>(frame.remaining(), bytes.size())))
               ? Status::kDone
               : Status::kFailed;
  }
  Received receive(NetHeader& header, ChainWriter frame, std::span<std::byte> /*rest*/) override {
    if (frames == 0) {
      return {};
    }
    --frames;
    header = {};
    frame.write_zeroes(size);
    return {Status::kDone, size};
  }
  std::size_t pairs() const override { return 1; }
  NetPort& port(std::size_t /*pair*/) override { return *this; }
  NetOffloads offloads() const override { return kAll; }
  Result<void> set_offloads(const NetOffloads& /*offloads*/) override { return {}; }
  Result<void> use_pairs(std::size_t /*pairs*/) override { return {}; }

  std::size_t frames = 0;
  std::size_t size = 60;

 private:
  UniqueFd fd_ = make_eventfd().value();
};

TEST_F(NetDeviceTest, running_device_allocates_nothing) {
  auto owned = std::make_unique<EndlessBackend>();
  EndlessBackend& backend = *owned;
  NetGuest guest({.id = "allocations", .mac = kMac}, std::move(owned), registrar_);
  guest.start(kEverything);
  std::size_t worst = 0;
  for (unsigned round = 0; round < 2000; ++round) {
    guest.tx().collect_all();
    guest.rx().collect_all();
    while (guest.tx().free_descriptors() >= 2) {
      guest.send({}, frame_of(60));
    }
    while (guest.rx().free_descriptors() != 0) {
      guest.add_rx(1, 1526);
    }
    backend.frames = 50;
    backend.size = round % 10 == 0 ? 5000 : 60;
    const std::size_t before = testing::allocation_count();
    guest.process();
    registrar_.notify_readable(backend.fd());
    const std::size_t allocated = testing::allocation_count() - before;
    // The first rounds meet more chains ahead than ever before.
    worst = round < 20 ? 0 : std::max(worst, allocated);
  }
  EXPECT_EQ(worst, 0U);
  EXPECT_EQ(backend.frames, 0U);
}

}  // namespace
}  // namespace mayfly
