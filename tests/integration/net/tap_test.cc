// The network device on a tap of a network namespace that the test makes itself.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "devices/virtio/net/tap_backend.h"
#include "private_network.h"
#include "support/fake_event.h"
#include "support/net_guest.h"

namespace mayfly {
namespace {

using testing::ManualRegistrar;
using testing::NetGuest;
using testing::run;

std::vector<std::byte> bytes_of(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) {
    bytes.push_back(static_cast<std::byte>(value));
  }
  return bytes;
}

const MacAddress kMac{{0x06, 0, 0xac, 0x10, 0, 2}};

// A frame of an experimental type to everybody.
std::vector<std::byte> broadcast(std::size_t size) {
  auto frame = bytes_of({0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x06, 0, 0xac, 0x10, 0, 2, 0x88, 0xb5});
  for (std::size_t index = frame.size(); index < size; ++index) {
    frame.push_back(static_cast<std::byte>(index * 7));
  }
  return frame;
}

class Tap : public ::testing::Test {
 protected:
  // The host's end of the tap, as any program of the host sees it.
  class PacketSocket {
   public:
    explicit PacketSocket(const std::string& name)
        : fd_(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL))) {
      sockaddr_ll address{};
      address.sll_family = AF_PACKET;
      address.sll_protocol = htons(ETH_P_ALL);
      address.sll_ifindex = static_cast<int>(::if_nametoindex(name.c_str()));
      // SAFETY: as bind(2) wants it.
      EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    }
    void send(const std::vector<std::byte>& frame) {
      EXPECT_EQ(::send(fd_.get(), frame.data(), frame.size(), 0), static_cast<ssize_t>(frame.size()));
    }
    // The next frame of the experimental type: the host sends of its own, too.
    std::vector<std::byte> receive() {
      for (;;) {
        pollfd ready{.fd = fd_.get(), .events = POLLIN, .revents = 0};
        if (::poll(&ready, 1, 5000) != 1) {
          return {};
        }
        std::vector<std::byte> frame(70000);
        const ssize_t size = ::recv(fd_.get(), frame.data(), frame.size(), 0);
        if (size >= 14 && frame[12] == std::byte{0x88} && frame[13] == std::byte{0xb5}) {
          frame.resize(static_cast<std::size_t>(size));
          return frame;
        }
      }
    }

   private:
    UniqueFd fd_;
  };

  ManualRegistrar registrar_;
};

TEST_F(Tap, frame_of_the_guest_reaches_the_host) {
  ASSERT_TRUE(run("ip tuntap add dev tx0 mode tap && ip link set tx0 up"));
  NetGuest guest({.id = "tx0", .mac = kMac}, TapBackend::open("tx0", 1).value(), registrar_);
  guest.start(NetGuest::kPlainDriver);
  PacketSocket host("tx0");
  const auto frame = broadcast(1000);

  guest.send({}, frame);
  guest.process();

  EXPECT_EQ(host.receive(), frame);
  EXPECT_EQ(guest.tx().collect_all().size(), 1U);
}

TEST_F(Tap, frame_of_the_host_reaches_the_guest) {
  ASSERT_TRUE(run(
      "ip tuntap add dev rx0 mode tap && sysctl -qw net.ipv6.conf.rx0.disable_ipv6=1 && ip link set rx0 up"));
  auto backend = TapBackend::open("rx0", 1).value();
  const int fd = backend->port(0).fd();
  NetGuest guest({.id = "rx0", .mac = kMac}, std::move(backend), registrar_);
  guest.start(NetGuest::kPlainDriver | VIRTIO_NET_F_MRG_RXBUF);
  guest.add_rx(4, 512);
  guest.process();
  PacketSocket host("rx0");
  const auto frame = broadcast(1200);

  host.send(frame);
  ASSERT_TRUE(registrar_.notify_readable(fd));

  const auto received = guest.next_frame();
  ASSERT_TRUE(received);
  EXPECT_EQ(received->bytes, frame);
  EXPECT_EQ(received->header.num_buffers, 3);
  EXPECT_EQ(received->header.flags, 0);
}

TEST_F(Tap, checksum_and_segmentation_are_the_hosts_to_do) {
  ASSERT_TRUE(run("ip tuntap add dev off0 mode tap && ip link set off0 up"));
  auto backend = TapBackend::open("off0", 1).value();
  EXPECT_TRUE(backend->offloads().checksum);
  EXPECT_TRUE(backend->offloads().tso4);
  EXPECT_TRUE(backend->offloads().tso6);
  NetGuest guest({.id = "off0", .mac = kMac}, std::move(backend), registrar_);
  guest.start(NetGuest::kPlainDriver | VIRTIO_NET_F_CSUM | VIRTIO_NET_F_HOST_TSO4);
  PacketSocket host("off0");
  // Of the experimental type, and so nobody looks into it: the sum is made for whoever receives it.
  auto frame = broadcast(200);
  guest.send({.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 6}, frame);
  guest.process();
  EXPECT_FALSE(host.receive().empty());
  EXPECT_EQ(metrics().net_device("off0").tx_fails.value(), 0U);
}

TEST_F(Tap, frame_of_a_guest_reaches_another_whole_and_unsegmented) {
  ASSERT_TRUE(run(
      "ip link add br0 type bridge && ip link set br0 up && for t in a0 a1; do ip tuntap add dev $t mode tap "
      "&& "
      "sysctl -qw net.ipv6.conf.$t.disable_ipv6=1 && ip link set $t master br0 && ip link set $t up; done"));
  NetGuest sender({.id = "a0", .mac = kMac}, TapBackend::open("a0", 1).value(), registrar_);
  auto backend = TapBackend::open("a1", 1).value();
  const int fd = backend->port(0).fd();
  NetGuest receiver({.id = "a1", .mac = kMac}, std::move(backend), registrar_);
  constexpr std::uint64_t kOffloads = VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_HOST_TSO4 |
                                      VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_MRG_RXBUF;
  sender.start(NetGuest::kPlainDriver | kOffloads);
  receiver.start(NetGuest::kPlainDriver | kOffloads);
  receiver.add_rx(60, 1526);
  receiver.process();
  // TCP over IPv4 with 30,000 bytes for the host to segment, from 10.0.0.1 to 10.0.0.2.
  auto frame = broadcast(54 + 30000);
  const auto header = bytes_of({0x08, 0, 0x45, 0, 0x75, 0x58, 0,    1,    0x40, 0,    64, 6,  0, 0,
                                10,   0, 0,    1, 10,   0,    0,    2,    0x30, 0x39, 0,  80, 0, 0,
                                0,    1, 0,    0, 0,    1,    0x50, 0x10, 0xff, 0xff, 0,  0,  0, 0});
  std::ranges::copy(header, frame.begin() + 12);
  unsigned sum = 0;
  for (std::size_t index = 14; index < 34; index += 2) {
    sum += std::to_integer<unsigned>(frame[index]) << 8 | std::to_integer<unsigned>(frame[index + 1]);
  }
  sum = ~((sum & 0xffff) + (sum >> 16));
  frame[24] = static_cast<std::byte>(sum >> 8);
  frame[25] = static_cast<std::byte>(sum);
  const NetHeader segments{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                           .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                           .hdr_len = 54,
                           .gso_size = 1460,
                           .csum_start = 34,
                           .csum_offset = 16};
  std::optional<NetGuest::Frame> received;
  for (int attempt = 0; attempt < 100 && !received; ++attempt) {
    sender.send(segments, frame);  // again: the bridge needs a moment until its ports forward
    sender.process();
    sender.tx().collect_all();
    pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, 200) == 1) {
      registrar_.notify_readable(fd);
      do {  // the bridge says things of its own
        received = receiver.next_frame();
      } while (received && received->bytes.size() != frame.size());
    }
  }
  ASSERT_TRUE(received);
  EXPECT_EQ(received->bytes, frame);
  EXPECT_EQ(received->header.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
  EXPECT_EQ(received->header.gso_size, 1460);
  EXPECT_EQ(received->header.csum_start, 34);
  EXPECT_EQ(received->header.num_buffers, 20);
}

TEST_F(Tap, without_buffers_frames_wait_in_the_tap) {
  ASSERT_TRUE(run(
      "ip tuntap add dev w0 mode tap && sysctl -qw net.ipv6.conf.w0.disable_ipv6=1 && ip link set w0 up"));
  NetGuest guest({.id = "w0", .mac = kMac}, TapBackend::open("w0", 1).value(), registrar_);
  guest.start(NetGuest::kPlainDriver);
  PacketSocket host("w0");
  host.send(broadcast(100));
  host.send(broadcast(200));
  EXPECT_FALSE(guest.next_frame());
  guest.add_rx(2, 1526);
  guest.process();
  EXPECT_EQ(guest.next_frame().value().bytes, broadcast(100));
  EXPECT_EQ(guest.next_frame().value().bytes, broadcast(200));
}

TEST_F(Tap, several_queues_send_and_receive) {
  ASSERT_TRUE(
      run("ip tuntap add dev mq0 mode tap multi_queue && sysctl -qw net.ipv6.conf.mq0.disable_ipv6=1 && ip "
          "link set mq0 up"));
  auto backend = TapBackend::open("mq0", 4).value();
  const int fd = backend->port(0).fd();
  NetGuest guest({.id = "mq0", .mac = kMac}, std::move(backend), registrar_);
  guest.start(NetGuest::kPlainDriver | VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_MQ);
  PacketSocket host("mq0");
  guest.add_rx(8, 1526, 0);
  guest.process();
  host.send(broadcast(80));
  registrar_.notify_readable(fd);
  EXPECT_EQ(guest.next_frame(0).value().bytes, broadcast(80));
  const auto command = bytes_of({4, 0, 4, 0});
  guest.control().chain().readable(command).writable(1).submit();
  guest.process();
  EXPECT_EQ(std::to_integer<int>(guest.control().collect().value().writable[0]), 0);
  for (std::size_t pair = 0; pair < 4; ++pair) {
    guest.send({}, broadcast(100 + pair), pair);
    guest.process();
    EXPECT_EQ(host.receive().size(), 100 + pair);
  }
  guest.control().chain().readable(bytes_of({4, 0, 1, 0})).writable(1).submit();
  guest.process();
  EXPECT_EQ(std::to_integer<int>(guest.control().collect().value().writable[0]), 0);
}

// UDP over IPv4 from one address and port to another; its sum is wrong.
std::vector<std::byte> datagram(int from, int from_port, int to, int to_port) {
  auto frame = broadcast(60);
  const auto header = bytes_of({0x08,
                                0,
                                0x45,
                                0,
                                0,
                                46,
                                0,
                                1,
                                0,
                                0,
                                64,
                                17,
                                0,
                                0,
                                10,
                                0,
                                0,
                                from,
                                10,
                                0,
                                0,
                                to,
                                from_port >> 8,
                                from_port & 0xff,
                                to_port >> 8,
                                to_port & 0xff,
                                0,
                                26,
                                0x12,
                                0x34});
  std::ranges::copy(header, frame.begin() + 12);
  unsigned sum = 0;
  for (std::size_t index = 14; index < 34; index += 2) {
    sum += std::to_integer<unsigned>(frame[index]) << 8 | std::to_integer<unsigned>(frame[index + 1]);
  }
  sum = ~((sum & 0xffff) + (sum >> 16));
  frame[24] = static_cast<std::byte>(sum >> 8);
  frame[25] = static_cast<std::byte>(sum);
  return frame;
}

// 5.1.6.5.6: automatic receive steering is the tap's. What answers a flow comes where the flow was sent.
TEST_F(Tap, answers_come_to_the_pair_that_sent) {
  ASSERT_TRUE(
      run("ip tuntap add dev st0 mode tap multi_queue && sysctl -qw net.ipv6.conf.st0.disable_ipv6=1 && ip "
          "link set st0 up"));
  auto backend = TapBackend::open("st0", 4).value();
  std::array<int, 4> fds{};
  for (std::size_t pair = 0; pair < fds.size(); ++pair) {
    fds.at(pair) = backend->port(pair).fd();
  }
  NetGuest guest({.id = "st0", .mac = kMac}, std::move(backend), registrar_);
  guest.start(NetGuest::kPlainDriver | VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_MQ);
  PacketSocket host("st0");
  guest.control().chain().readable(bytes_of({4, 0, 4, 0})).writable(1).submit();
  for (std::size_t pair = 0; pair < 4; ++pair) {
    guest.add_rx(8, 1526, pair);
  }
  guest.process();
  for (int flow = 0; flow < 16; ++flow) {
    const auto pair = static_cast<std::size_t>(flow * 7 % 4);
    guest.send({}, datagram(1, 2000 + flow, 2, 53), pair);
    guest.process();
    const auto answer = datagram(2, 53, 1, 2000 + flow);
    host.send(answer);
    for (std::size_t other = 0; other < 4; ++other) {
      registrar_.notify_readable(fds.at(other));
      const auto received = guest.next_frame(other);
      ASSERT_EQ(received.has_value(), other == pair) << "flow " << flow << " at pair " << other;
      EXPECT_TRUE(!received || received->bytes == answer);
    }
  }
}

// 5.1.6.4.1: the host says of no checksum that it is right without having looked.
TEST_F(Tap, wrong_checksum_is_not_called_valid) {
  ASSERT_TRUE(run(
      "ip tuntap add dev v0 mode tap && sysctl -qw net.ipv6.conf.v0.disable_ipv6=1 && ip link set v0 up"));
  auto backend = TapBackend::open("v0", 1).value();
  const int fd = backend->port(0).fd();
  NetGuest guest({.id = "v0", .mac = kMac}, std::move(backend), registrar_);
  guest.start(NetGuest::kPlainDriver | VIRTIO_NET_F_GUEST_CSUM);
  guest.add_rx(4, 1526);
  guest.process();
  PacketSocket host("v0");
  host.send(datagram(2, 53, 1, 2000));
  ASSERT_TRUE(registrar_.notify_readable(fd));
  const auto received = guest.next_frame();
  ASSERT_TRUE(received);
  EXPECT_EQ(received->bytes, datagram(2, 53, 1, 2000));
  EXPECT_EQ(received->header.flags & VIRTIO_NET_HDR_F_DATA_VALID, 0);
}

TEST_F(Tap, deleted_tap_takes_the_link_down) {
  ASSERT_TRUE(run("ip tuntap add dev del0 mode tap && ip link set del0 up"));
  auto backend = TapBackend::open("del0", 1).value();
  const int fd = backend->port(0).fd();
  NetGuest guest({.id = "del0", .mac = kMac}, std::move(backend), registrar_);
  guest.start(NetGuest::kPlainDriver);
  guest.add_rx(8, 1526, 0);
  guest.process();
  ASSERT_TRUE(run("ip link delete del0"));
  registrar_.notify(fd, {.hung_up = true});
  EXPECT_FALSE(guest.device().link_up());
}

// --- Errors ---

void expect_error(const std::string& tap, std::size_t pairs, ErrorCode code, const std::string& why) {
  const auto opened = TapBackend::open(tap, pairs);
  ASSERT_FALSE(opened) << tap;
  EXPECT_EQ(opened.error().code(), code);
  EXPECT_THAT(opened.error().message(), ::testing::StartsWith("tap " + tap + ": "));
  EXPECT_THAT(opened.error().message(), ::testing::HasSubstr(why));
}

TEST_F(Tap, errors_say_what_is_wrong_and_what_to_do) {
  ASSERT_TRUE(
      run("ip tuntap add dev one mode tap && ip tuntap add dev many mode tap multi_queue && "
          "ip tuntap add dev layer3 mode tun && ip link add other type bridge"));
  const auto held = TapBackend::open("one", 1);
  ASSERT_TRUE(held);
  expect_error("one", 1, ErrorCode::kBusy, "another process uses it");
  expect_error("many", 1, ErrorCode::kInvalidArgument, "made for several queues while one pair is asked for");
  expect_error("layer3", 1, ErrorCode::kInvalidArgument, "it is no tap");
  expect_error("other", 1, ErrorCode::kInvalidArgument, "it is no tap");
  ASSERT_TRUE(run("ip tuntap add dev single mode tap"));
  expect_error("single", 2, ErrorCode::kInvalidArgument, "multi_queue");
}

TEST_F(Tap, tap_that_is_not_there_is_refused_with_the_way_to_make_it_and_not_made) {
  expect_error("fresh0", 1, ErrorCode::kNotFound, "ip tuntap add dev fresh0 mode tap, and then");
  expect_error("fresh0", 2, ErrorCode::kNotFound, "ip tuntap add dev fresh0 mode tap multi_queue");
  EXPECT_EQ(::if_nametoindex("fresh0"), 0U);
}

}  // namespace
}  // namespace mayfly

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const auto why = mayfly::testing::enter_private_network()) {
    std::printf("SKIPPED: tap tests: %s\n", why->c_str());
    return 77;
  }
  if (::access("/dev/net/tun", R_OK | W_OK) != 0) {
    std::printf("SKIPPED: tap tests: /dev/net/tun: %s\n", std::strerror(errno));
    return 77;
  }
  return RUN_ALL_TESTS();
}
