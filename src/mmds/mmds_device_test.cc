// The metadata service behind a network device, as a guest's driver sees it.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>

#include "mmds/mmds_backend.h"
#include "support/fake_event.h"
#include "support/memory_net_backend.h"
#include "support/net_guest.h"
#include "support/tcp_packet.h"

namespace mayfly {
namespace {

using namespace std::chrono_literals;
using testing::frame_of;
using testing::NetGuest;
using testing::packet_of;
using testing::TcpPacket;

constexpr std::uint8_t kSyn = TcpPacket::kSyn;
constexpr std::uint8_t kAck = TcpPacket::kAck;
constexpr std::uint8_t kPsh = TcpPacket::kPsh;

std::uint64_t g_now = 1'000'000'000;
constexpr Clock kTestClock{[] { return g_now; }, [] { return g_now; }};

class MmdsDevice : public ::testing::Test {
 protected:
  void start(std::size_t pairs = 1) {
    ASSERT_TRUE(mmds_->put("{\"latest\":\"" + std::string(50'000, 'x') + "\"}"));
    auto inner = std::make_unique<testing::MemoryNetBackend>(pairs);
    inner_ = inner.get();
    static int made = 0;
    guest_ = std::make_unique<NetGuest>(
        NetDeviceSettings{.id = "mmds" + std::to_string(made++), .clock = &kTestClock},
        with_mmds(std::move(inner), mmds_, {.clock = &kTestClock}), registrar_);
    guest_->start(NetGuest::kPlainDriver | VIRTIO_NET_F_CSUM | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_CTRL_VQ |
                  VIRTIO_NET_F_MQ);
  }

  void run() { guest_->run_until_quiet(registrar_); }
  void give_buffers(std::size_t count, std::uint32_t bytes) {
    guest_->add_rx(count, bytes);
    guest_->driver().notify(0);
    run();
  }
  void send(std::uint8_t flags, std::string_view payload = {}) {
    TcpPacket packet;
    packet.seq = next_;
    packet.ack = expected_;
    packet.flags = flags;
    packet.payload = payload;
    next_ += packet.length();
    guest_->send({.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16},
                 frame_of(packet, true));
    guest_->driver().notify(1);
    run();
    guest_->tx().collect_all();
  }
  // The next segment, acknowledged at the next send().
  std::optional<TcpPacket> hear() {
    const auto frame = guest_->next_frame();
    auto packet = frame ? packet_of(frame->bytes) : std::nullopt;
    if (packet) {
      expected_ = packet->seq + packet->length();
    }
    return packet;
  }

  testing::ManualRegistrar registrar_;
  std::shared_ptr<Mmds> mmds_ = std::make_shared<Mmds>(60'000, kTestClock);
  testing::MemoryNetBackend* inner_ = nullptr;
  std::unique_ptr<NetGuest> guest_;
  std::uint32_t next_ = 1000;
  std::uint32_t expected_ = 0;
};

TEST_F(MmdsDevice, driver_reads_a_long_value) {
  start();
  give_buffers(64, 1000);  // two for a segment
  send(kSyn);
  ASSERT_TRUE(hear());
  send(kAck | kPsh, "GET /latest HTTP/1.1\r\n\r\n");
  std::string text;
  for (int round = 0; round < 200 && text.size() < 50'000; ++round) {
    while (const auto packet = hear()) {
      text += packet->payload;
    }
    give_buffers(8, 1000);
    send(kAck);
  }
  EXPECT_TRUE(text.ends_with("\r\n\r\n" + std::string(50'000, 'x')));
  EXPECT_EQ(inner_->port(0).send_calls, 0U);
  EXPECT_TRUE(guest_->rx().violations().empty());
}

TEST_F(MmdsDevice, answer_that_is_not_acknowledged_comes_again_in_time) {
  start();
  give_buffers(16, 2000);
  send(kSyn);
  const auto first = hear();
  ASSERT_TRUE(first);
  g_now += 1'000'000'000;
  registrar_.advance(1s);
  run();
  EXPECT_EQ(hear(), first);
}

TEST_F(MmdsDevice, frames_of_the_network_come_as_well) {
  start();
  give_buffers(16, 2000);
  send(kSyn);
  inner_->port(0).to_driver.push_back({{}, std::vector<std::byte>(60, std::byte{1})});
  registrar_.notify_readable(inner_->port(0).fd());
  run();
  EXPECT_TRUE(hear());
  EXPECT_EQ(guest_->next_frame()->bytes, std::vector<std::byte>(60, std::byte{1}));
}

TEST_F(MmdsDevice, all_pairs_lead_to_the_service) {
  start(2);
  const std::array<std::byte, 4> use_two = {std::byte{4}, std::byte{0}, std::byte{2}, std::byte{0}};
  guest_->control().chain().readable(use_two).writable(1).submit();
  guest_->driver().notify(4);
  run();
  guest_->add_rx(4, 2000, 1);
  guest_->driver().notify(2);
  run();
  TcpPacket syn;
  syn.flags = kSyn;
  guest_->send({}, frame_of(syn), 1);
  guest_->driver().notify(3);
  run();
  const auto frame = guest_->next_frame(1);
  ASSERT_TRUE(frame);
  EXPECT_EQ(packet_of(frame->bytes)->flags, kSyn | kAck);
}

}  // namespace
}  // namespace mayfly
