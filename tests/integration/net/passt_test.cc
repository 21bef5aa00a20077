// The network device on a real passt, in a network namespace that the test makes itself.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "devices/virtio/net/net_config.h"
#include "devices/virtio/net/passt_backend.h"
#include "devices/virtio/net/passt_process.h"
#include "private_network.h"
#include "support/fake_event.h"
#include "support/net_guest.h"

namespace mayfly {
namespace {

using testing::ManualRegistrar;
using testing::NetGuest;

constexpr std::uint64_t kFeatures = NetGuest::kPlainDriver | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_MTU;
constexpr std::array<std::uint8_t, 6> kMac = {0x06, 0, 0, 0, 0, 0xaa};
constexpr std::array<std::uint8_t, 4> kGateway = {10, 9, 0, 1};
constexpr std::array<std::uint8_t, 4> kGuest = {10, 9, 0, 2};

std::vector<std::byte> arp_request() {
  std::vector<std::byte> frame;
  const auto add = [&frame](auto bytes) {
    for (const auto byte : bytes) {
      frame.push_back(static_cast<std::byte>(byte));
    }
  };
  add(std::array<int, 6>{0xff, 0xff, 0xff, 0xff, 0xff, 0xff});
  add(kMac);
  add(std::array<int, 10>{0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1});
  add(kMac);
  add(kGuest);
  add(std::array<int, 6>{});
  add(kGateway);
  return frame;
}

class PasstNetwork : public ::testing::Test {
 protected:
  // Starts passt and a guest behind it.
  void start(std::vector<PortForward> forwards = {}) {
    const UserNetConfig user{.forwards = std::move(forwards)};
    auto started = PasstProcess::start({.user = user, .mtu = 65520});
    ASSERT_TRUE(started) << started.error().message();
    pid_ = started->process->pid();
    fd_ = started->socket.get();
    guest_ = std::make_unique<NetGuest>(
        NetDeviceSettings{.id = "user", .mac = MacAddress{kMac}, .mtu = 65520},
        std::make_unique<PasstBackend>(std::move(started->socket), std::move(started->process)), registrar_);
    guest_->start(kFeatures);
    guest_->add_rx(200, 2048);
    guest_->process();
  }

  // The next frame of that type and protocol, or nothing within ten seconds.
  std::optional<std::vector<std::byte>> receive(unsigned type, std::optional<unsigned> protocol = {}) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (std::chrono::steady_clock::now() < end) {
      while (const auto frame = guest_->next_frame()) {
        const auto& bytes = frame->bytes;
        const auto at = [&bytes](std::size_t index) { return std::to_integer<unsigned>(bytes[index]); };
        if (bytes.size() > 23 && (at(12) << 8 | at(13)) == type && (!protocol || at(23) == *protocol)) {
          return bytes;
        }
      }
      turn();
    }
    return std::nullopt;
  }
  void turn() {
    pollfd ready{.fd = fd_, .events = POLLIN, .revents = 0};
    ::poll(&ready, 1, 100);
    registrar_.notify(fd_, {.readable = (ready.revents & POLLIN) != 0,
                            .writable = true,
                            .hung_up = (ready.revents & (POLLHUP | POLLERR)) != 0});
  }

  ManualRegistrar registrar_;
  std::unique_ptr<NetGuest> guest_;
  pid_t pid_ = 0;
  int fd_ = -1;
};

TEST_F(PasstNetwork, gateway_answers_the_guest) {
  start();
  guest_->send({}, arp_request());
  guest_->process();
  const auto reply = receive(0x0806);
  ASSERT_TRUE(reply);
  EXPECT_EQ((*reply)[21], std::byte{2});  // an answer
  for (std::size_t index = 0; index < 4; ++index) {
    EXPECT_EQ((*reply)[28 + index], static_cast<std::byte>(kGateway[index]));
  }
}

TEST_F(PasstNetwork, connection_to_a_forwarded_port_reaches_the_guest) {
  start({{.host_port = 18080, .guest_port = 80}});
  guest_->send({}, arp_request());  // tells passt the guest's address
  guest_->process();
  ASSERT_TRUE(receive(0x0806));

  const UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(18080);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  // SAFETY: as connect(2) wants it.
  const int connected = ::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  ASSERT_TRUE(connected == 0 || errno == EINPROGRESS);
  const auto syn = receive(0x0800, IPPROTO_TCP);
  ASSERT_TRUE(syn);
  EXPECT_EQ((*syn)[36], std::byte{0});
  EXPECT_EQ((*syn)[37], std::byte{80});                   // destination port
  EXPECT_EQ((*syn)[47] & std::byte{0x3f}, std::byte{2});  // SYN
}

TEST_F(PasstNetwork, passt_that_is_killed_takes_the_link_down) {
  start();
  ASSERT_EQ(::kill(pid_, SIGKILL), 0);
  for (int round = 0; round < 100 && guest_->device().link_up(); ++round) {
    turn();
  }
  EXPECT_FALSE(guest_->device().link_up());
  EXPECT_EQ(guest_->driver().config_u16(6), 0);
  guest_->send({}, arp_request());
  guest_->process();
  EXPECT_EQ(guest_->tx().collect_all().size(), 1U);
}

TEST_F(PasstNetwork, passt_ends_when_the_device_goes) {
  start();
  guest_.reset();
  int status = 0;
  ASSERT_EQ(::waitpid(pid_, &status, WNOHANG), pid_);
  EXPECT_TRUE(WIFEXITED(status)) << "nobody has to kill it";
}

TEST_F(PasstNetwork, passt_that_hangs_does_not_keep_the_device) {
  start();
  ASSERT_EQ(::kill(pid_, SIGSTOP), 0);
  guest_.reset();
  EXPECT_EQ(::waitpid(pid_, nullptr, WNOHANG), 0);
  ASSERT_EQ(::kill(pid_, SIGKILL), 0);
  EXPECT_EQ(::waitpid(pid_, nullptr, 0), pid_);
}

// As the monitor has it.
TEST_F(PasstNetwork, passt_leaves_nothing_behind_where_children_are_not_waited_for) {
  const auto before = ::signal(SIGCHLD, SIG_IGN);
  start();
  guest_.reset();
  EXPECT_EQ(::kill(pid_, 0), -1);
  ::signal(SIGCHLD, before);
}

TEST_F(PasstNetwork, port_that_is_taken_is_an_error_that_says_so) {
  const UniqueFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(18081);
  // SAFETY: as bind(2) wants it.
  ASSERT_EQ(::bind(server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(server.get(), 1), 0);
  const NetDeviceConfig config{
      .id = "eth0", .backend = UserNetConfig{.forwards = {{.host_port = 18081, .guest_port = 80}}}};
  const auto backend = config.open_backend();
  ASSERT_FALSE(backend);
  EXPECT_THAT(backend.error().message(), ::testing::StartsWith("interface eth0: "));
  EXPECT_THAT(backend.error().message(), ::testing::HasSubstr("18081"));
}

TEST_F(PasstNetwork, ordinary_user_gets_a_network) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "this is one already";
  }
  const pid_t child = ::fork();
  if (child == 0) {
    constexpr unsigned kNobody = 65534;
    if (::setresgid(kNobody, kNobody, kNobody) != 0 || ::setresuid(kNobody, kNobody, kNobody) != 0) {
      ::_exit(2);
    }
    const UserNetConfig user;
    const auto started = PasstProcess::start({.user = user, .mtu = 1500});
    if (!started) {
      std::printf("%s\n", started.error().message().c_str());
      std::fflush(stdout);
    }
    ::_exit(started ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace mayfly

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (std::system("command -v passt >/dev/null") != 0) {  // NOLINT(cert-env33-c): a fixed command
    std::printf("SKIPPED: passt tests: passt is not installed (apt install passt)\n");
    return 77;
  }
  if (const auto why = mayfly::testing::enter_private_network()) {
    std::printf("SKIPPED: passt tests: %s\n", why->c_str());
    return 77;
  }
  // passt takes the addresses it gives to the guest from the interface with the default route.
  if (!mayfly::testing::run(
          "ip link set lo up && ip link add host0 type bridge && ip address add 10.9.0.2/24 dev host0 && "
          "ip link set host0 up && ip route add default via 10.9.0.1 dev host0")) {
    std::printf("SKIPPED: passt tests: no interface can be made here\n");
    return 77;
  }
  return RUN_ALL_TESTS();
}
