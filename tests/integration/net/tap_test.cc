// The network device on a tap of a network namespace that the test makes itself.
#include <arpa/inet.h>
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
    explicit PacketSocket(const std::string& name) : fd_(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL))) {
      sockaddr_ll address{};
      address.sll_family = AF_PACKET;
      address.sll_protocol = htons(ETH_P_ALL);
      address.sll_ifindex = static_cast<int>(::if_nametoindex(name.c_str()));
      EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);  // SAFETY: as bind(2) wants it
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
  ASSERT_TRUE(run("ip tuntap add dev rx0 mode tap && sysctl -qw net.ipv6.conf.rx0.disable_ipv6=1 && ip link set rx0 up"));
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
