// The metadata service under Linux's own TCP, with curl and Python as clients: a tap of a network namespace
// that the test makes itself, whose other end is the service alone.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "private_network.h"
#include "support/mmds_link.h"

namespace mayfly {
namespace {

using ::testing::HasSubstr;
using testing::MmdsLink;
using testing::run;

class MmdsClients : public ::testing::Test {
 protected:
  // A tap with the service behind it. The kernel leaves checksums and segmentation to it.
  void SetUp() override {
    static int made = 0;
    name_ = "mm" + std::to_string(made++);
    auto tap = open_file("/dev/net/tun", O_RDWR | O_NONBLOCK, "tap driver");
    ASSERT_TRUE(tap);
    tap_ = std::move(*tap);
    ifreq request{};
    name_.copy(request.ifr_name, sizeof(request.ifr_name) - 1);
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    int header = sizeof(NetHeader);
    ASSERT_EQ(::ioctl(tap_.get(), TUNSETIFF, &request), 0);
    ASSERT_EQ(::ioctl(tap_.get(), TUNSETVNETHDRSZ, &header), 0);
    ASSERT_EQ(::ioctl(tap_.get(), TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4), 0);
    ASSERT_TRUE(run("ip link set " + name_ + " up && ip addr add 172.16.0.2/24 dev " + name_ +
                    " && ip route add 169.254.169.254 dev " + name_));
    ASSERT_TRUE(mmds_->put(R"({"latest":{"meta-data":{"ami-id":"ami-1","n":3},"user-data":")" +
                           std::string(50'000, 'u') + "\"}}"));
  }
  void TearDown() override { EXPECT_TRUE(run("ip link del " + name_)); }

  // Runs `command` by the shell and serves it meanwhile. What it printed.
  std::string serve(const std::string& command) {
    // NOLINTNEXTLINE(cert-env33-c): a test's own commands
    FILE* const child = ::popen((command + " 2>&1").c_str(), "re");
    std::string output;
    for (bool over = false; !over;) {
      const auto in = link_.own_frame_in();
      const int wait = in ? static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(*in).count()) : -1;
      std::array<pollfd, 2> ready = {pollfd{.fd = ::fileno(child), .events = POLLIN, .revents = 0},
                                     pollfd{.fd = tap_.get(), .events = POLLIN, .revents = 0}};
      ::poll(ready.data(), ready.size(), wait);
      if (ready[0].revents != 0) {
        std::array<char, 65'536> text;
        const ssize_t size = ::read(ready[0].fd, text.data(), text.size());
        over = size <= 0;
        output.append(text.data(), over ? 0 : static_cast<std::size_t>(size));
      }
      while (from_kernel()) {
      }
      while (own_frame()) {
      }
    }
    EXPECT_EQ(::pclose(child), 0) << command << "\n" << output;
    return output;
  }

  bool from_kernel() {
    std::vector<std::byte> bytes(70'000);
    const ssize_t size = ::read(tap_.get(), bytes.data(), bytes.size());
    if (size <= static_cast<ssize_t>(sizeof(NetHeader))) {
      return false;
    }
    NetHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    partial_ = partial_ || header.flags != 0;
    if (keep()) {
      link_.send(std::span(bytes).first(static_cast<std::size_t>(size)).subspan(sizeof(header)), header);
    }
    return true;
  }

  bool own_frame() {
    const auto frame = link_.receive();
    if (!frame) {
      return false;
    }
    std::vector<std::byte> bytes(sizeof(NetHeader));
    std::memcpy(bytes.data(), &frame->header, sizeof(NetHeader));
    bytes.insert(bytes.end(), frame->bytes.begin(), frame->bytes.end());
    if (keep()) {
      EXPECT_EQ(::write(tap_.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    }
    return true;
  }

  bool keep() { return lose_every_ == 0 || ++frames_ % lose_every_ != 0; }

  std::string name_;
  UniqueFd tap_;
  std::shared_ptr<Mmds> mmds_ = std::make_shared<Mmds>();
  MmdsLink link_{mmds_, {}};
  unsigned lose_every_ = 0;
  unsigned frames_ = 0;
  bool partial_ = false;
};

constexpr const char* kCurl = "curl -sS --max-time 60 ";

TEST_F(MmdsClients, curl_reads_text_and_json) {
  const std::string url = " http://169.254.169.254/latest";
  EXPECT_EQ(serve(kCurl + url), "meta-data/\nuser-data");
  EXPECT_EQ(serve(kCurl + url + "/meta-data/ami-id"), "ami-1");
  EXPECT_EQ(serve(std::string(kCurl) + "-H 'Accept: application/json'" + url + "/meta-data"),
            R"({"ami-id":"ami-1","n":3})");
  EXPECT_THAT(serve(std::string(kCurl) + "-i" + url + "/nothing"), HasSubstr("404 Not Found"));
  EXPECT_EQ(serve(kCurl + url + "/user-data"), std::string(50'000, 'u'));
  EXPECT_TRUE(partial_);  // what the kernel sent had its checksums left to us
}

TEST_F(MmdsClients, curl_keeps_its_connection) {
  const std::string url = " http://169.254.169.254/latest/meta-data/ami-id";
  EXPECT_EQ(serve(kCurl + url + url + url + " -w '%{num_connects} '"), "ami-11 ami-10 ami-10 ");
}

TEST_F(MmdsClients, session_is_opened_as_its_guide_says) {
  mmds_->configure({.version = MmdsVersion::kV2});
  const std::string curl = kCurl;
  EXPECT_THAT(serve(curl + "-i http://169.254.169.254/latest"), HasSubstr("401 Unauthorized"));
  EXPECT_EQ(
      serve("TOKEN=$(" + curl +
            "-X PUT http://169.254.169.254/latest/api/token -H 'X-metadata-token-ttl-seconds: 60') && " +
            curl + "-H \"X-metadata-token: $TOKEN\" http://169.254.169.254/latest/meta-data/ami-id"),
      "ami-1");
}

TEST_F(MmdsClients, request_of_several_segments_is_put_together) {
  const std::string header(3'500, 'h');
  EXPECT_EQ(serve(kCurl + ("-H 'X-Long: " + header) + "' http://169.254.169.254/latest/meta-data/ami-id"),
            "ami-1");
  EXPECT_THAT(serve(kCurl + ("-i -H 'X-Long: " + header + header) + "' http://169.254.169.254/"),
              HasSubstr("431"));
}

TEST_F(MmdsClients, more_clients_at_once_than_connections_are_all_served) {
  EXPECT_EQ(serve("for n in $(seq 60); do " + std::string(kCurl) +
                  "http://169.254.169.254/latest/user-data >/tmp/mayfly-mmds-$$-$n & done; wait; "
                  "cat /tmp/mayfly-mmds-$$-* | wc -c; rm /tmp/mayfly-mmds-$$-*"),
            "3000000\n");
}

TEST_F(MmdsClients, frames_that_are_lost_are_sent_again) {
  lose_every_ = 17;
  EXPECT_EQ(serve(std::string(kCurl) + "http://169.254.169.254/latest/user-data"), std::string(50'000, 'u'));
}

TEST_F(MmdsClients, python_keeps_a_connection_through_a_hundred_requests) {
  EXPECT_EQ(serve(R"(python3 -c '
import http.client
connection = http.client.HTTPConnection("169.254.169.254", timeout=60)
total = 0
for n in range(100):
    connection.request("GET", "/2009-04-04/user-data" if n % 2 else "/latest/meta-data/ami-id")
    total += len(connection.getresponse().read())
print(total)')"),
            "2500250\n");
}

TEST_F(MmdsClients, closed_ports_refuse) {
  EXPECT_EQ(serve(R"(python3 -c '
import socket
print(socket.socket().connect_ex(("169.254.169.254", 81)))')"),
            std::to_string(ECONNREFUSED) + "\n");
}

}  // namespace
}  // namespace mayfly

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const auto why = mayfly::testing::enter_private_network()) {
    std::printf("SKIPPED: metadata clients: %s\n", why->c_str());
    return 77;
  }
  if (::access("/dev/net/tun", R_OK | W_OK) != 0) {
    std::printf("SKIPPED: metadata clients: /dev/net/tun: %s\n", std::strerror(errno));
    return 77;
  }
  return RUN_ALL_TESTS();
}
