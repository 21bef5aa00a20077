#include "devices/virtio/net/passt_backend.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>
#include <thread>

#include "devices/virtio/net/net_config.h"
#include "support/fake_event.h"
#include "support/net_guest.h"

namespace mayfly {
namespace {

using testing::ManualRegistrar;
using testing::NetGuest;

const MacAddress kMac{{0x06, 0, 0xac, 0x10, 0, 2}};
constexpr std::uint64_t kFeatures = NetGuest::kPlainDriver | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_MTU;

std::vector<std::byte> frame_of(std::size_t size, unsigned seed = 1) {
  std::vector<std::byte> bytes(size);
  std::minstd_rand random(seed);
  for (auto& byte : bytes) {
    byte = static_cast<std::byte>(random());
  }
  return bytes;
}

std::vector<std::byte> with_length(const std::vector<std::byte>& frame) {
  std::vector<std::byte> bytes;
  for (int shift = 24; shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<std::byte>(frame.size() >> shift));
  }
  bytes.insert(bytes.end(), frame.begin(), frame.end());
  return bytes;
}

ChainWriter no_room() {
  return ChainWriter(std::span<const GuestSlice>());
}

// A guest, and the other end of its cable.
class Passt : public ::testing::Test {
 protected:
  void SetUp() override {
    std::array<int, 2> fds{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
    device_fd_ = fds[0];
    peer_ = UniqueFd(fds[1]);
    static int made = 0;
    const std::string id = "passt" + std::to_string(made++);
    guest_ = std::make_unique<NetGuest>(NetDeviceSettings{.id = id, .mac = kMac, .mtu = kMaxUserMtu},
                                        std::make_unique<PasstBackend>(UniqueFd(fds[0])), registrar_);
    metrics_ = &metrics().net_device(id);
    guest_->start(kFeatures);
    guest_->add_rx(100, 1526);
    turn();  // the doorbell of the start
  }

  // What the loop would do, once.
  void turn() {
    const auto interest = registrar_.interest(device_fd_);
    pollfd ready{.fd = device_fd_, .events = POLLIN | POLLOUT, .revents = 0};
    ::poll(&ready, 1, 0);
    if (interest) {
      registrar_.notify(device_fd_, {.readable = (ready.revents & POLLIN) != 0,
                                     .writable = (ready.revents & POLLOUT) != 0,
                                     .hung_up = (ready.revents & (POLLHUP | POLLERR)) != 0});
    }
    pollfd bell{.fd = guest_->transport().doorbell().get(), .events = POLLIN, .revents = 0};
    if (::poll(&bell, 1, 0) == 1) {
      registrar_.notify_readable(bell.fd);
    }
  }
  void peer_writes(std::span<const std::byte> bytes) {
    ASSERT_EQ(::send(peer_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // All that there is now.
  std::vector<std::byte> peer_reads(std::size_t most = 1 << 20) {
    std::vector<std::byte> bytes(most);
    const ssize_t size = ::recv(peer_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    bytes.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return bytes;
  }

  ManualRegistrar registrar_;
  int device_fd_ = -1;
  UniqueFd peer_;
  std::unique_ptr<NetGuest> guest_;
  NetMetrics* metrics_ = nullptr;
};

TEST_F(Passt, offers_no_offloads) {
  EXPECT_EQ(guest_->device().features() & (VIRTIO_NET_F_CSUM | VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_MQ),
            0U);
  EXPECT_EQ(guest_->driver().config_u16(10), 65520);
}

TEST_F(Passt, frame_of_the_guest_follows_its_length) {
  guest_->send({}, frame_of(1000));
  guest_->send({}, frame_of(65534));
  guest_->process();
  auto expected = with_length(frame_of(1000));
  const auto second = with_length(frame_of(65534));
  expected.insert(expected.end(), second.begin(), second.end());
  EXPECT_EQ(peer_reads(), expected);
}

TEST_F(Passt, frame_to_the_guest_has_an_empty_header) {
  peer_writes(with_length(frame_of(1000)));
  turn();
  const auto frame = guest_->next_frame();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->header, (NetHeader{.num_buffers = 1}));
  EXPECT_EQ(frame->bytes, frame_of(1000));
}

TEST_F(Passt, stream_cut_anywhere_gives_the_same_frames) {
  std::minstd_rand random(5);
  std::vector<std::byte> stream;
  std::vector<std::vector<std::byte>> expected;
  for (unsigned count = 0; count < 300; ++count) {
    expected.push_back(frame_of(random() % 30 == 0 ? 14 + random() % 65520 : 14 + random() % 200, count));
    const auto bytes = with_length(expected.back());
    stream.insert(stream.end(), bytes.begin(), bytes.end());
  }
  std::size_t received = 0;
  for (std::size_t start = 0; start < stream.size();) {
    const std::size_t size = std::min<std::size_t>(
        stream.size() - start, random() % 5 == 0 ? 1 + random() % 60000 : 1 + random() % 9);
    peer_writes(std::span(stream).subspan(start, size));
    start += size;
    turn();
    while (const auto frame = guest_->next_frame()) {
      ASSERT_EQ(frame->bytes, expected.at(received++));
    }
    while (guest_->rx().free_descriptors() != 0 && guest_->rx().outstanding() < 150) {
      guest_->add_rx(1, 1526);
    }
    guest_->process();
    while (const auto frame = guest_->next_frame()) {
      ASSERT_EQ(frame->bytes, expected.at(received++));
    }
  }
  EXPECT_EQ(received, expected.size());
}

TEST_F(Passt, frames_that_the_socket_takes_in_part_stay_whole) {
  const int small = 4096;
  ASSERT_EQ(::setsockopt(device_fd_, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
  std::vector<std::byte> expected;
  std::vector<std::byte> read;
  for (unsigned count = 0; count < 40; ++count) {
    const auto frame = frame_of(1 + count * 1500 + 14, count);
    if (frame.size() > kMaxFrame) {
      break;
    }
    const auto bytes = with_length(frame);
    expected.insert(expected.end(), bytes.begin(), bytes.end());
    guest_->send({}, frame);
    guest_->process();
    for (int round = 0; round < 2000 && read.size() < expected.size(); ++round) {
      const auto more = peer_reads(3000);
      read.insert(read.end(), more.begin(), more.end());
      turn();
    }
    guest_->tx().collect_all();
  }
  EXPECT_EQ(read, expected);
  EXPECT_EQ(registrar_.interest(device_fd_), Interest::kReadable);
}

TEST_F(Passt, rest_of_a_frame_goes_before_the_next_also_without_an_event) {
  const int small = 4096;
  ASSERT_EQ(::setsockopt(device_fd_, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
  std::vector<std::byte> expected;
  std::vector<std::byte> read;
  const auto read_more = [&](std::size_t most) {
    const auto more = peer_reads(most);
    read.insert(read.end(), more.begin(), more.end());
  };
  for (unsigned count = 0; count < 8; ++count) {
    const auto frame = frame_of(30000 + count, count);
    const auto bytes = with_length(frame);
    expected.insert(expected.end(), bytes.begin(), bytes.end());
    guest_->send({}, frame);
    guest_->process();
    read_more(20000);  // makes room, which the device is not told of before the next frame
  }
  for (int round = 0; round < 2000 && read.size() < expected.size(); ++round) {
    read_more(3000);
    turn();
  }
  EXPECT_EQ(read, expected);
}

TEST_F(Passt, frames_that_were_read_already_come_without_an_event) {
  // More that are lost than one turn takes, then a good one: all in one read.
  std::vector<std::byte> bytes;
  for (int count = 0; count < 300; ++count) {
    const auto bad = with_length(frame_of(13));
    bytes.insert(bytes.end(), bad.begin(), bad.end());
  }
  const auto good = with_length(frame_of(60));
  bytes.insert(bytes.end(), good.begin(), good.end());
  peer_writes(bytes);
  turn();
  turn();
  const auto frame = guest_->next_frame();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->bytes, frame_of(60));
  EXPECT_EQ(metrics_->rx_fails.value(), 300U);
}

TEST_F(Passt, full_socket_holds_the_frames_back) {
  for (unsigned count = 0; count < 12; ++count) {
    guest_->send({}, frame_of(60000, count));
  }
  guest_->process();
  EXPECT_EQ(registrar_.interest(device_fd_), Interest::kReadableAndWritable);
  EXPECT_GT(guest_->tx().outstanding() - guest_->tx().collect_all().size(), 0U);
  std::vector<std::byte> read;
  for (int round = 0; round < 100; ++round) {
    const auto more = peer_reads();
    read.insert(read.end(), more.begin(), more.end());
    turn();
  }
  EXPECT_EQ(read.size(), 12U * 60004);
  EXPECT_EQ(metrics_->tx_packets_count.value(), 12U);
}

TEST_F(Passt, peer_that_goes_takes_the_link_down_after_its_last_frame) {
  peer_writes(with_length(frame_of(100)));
  peer_.reset();
  turn();
  turn();
  EXPECT_TRUE(guest_->next_frame());
  EXPECT_FALSE(guest_->device().link_up());
  EXPECT_EQ(registrar_.interest(device_fd_), std::nullopt);
  guest_->send({}, frame_of(100));
  guest_->process();
  EXPECT_EQ(guest_->tx().collect_all().size(), 1U);
  EXPECT_EQ(guest_->driver().config_u16(6), 0);
}

TEST_F(Passt, peer_that_went_is_noticed_by_sending) {
  peer_.reset();
  guest_->send({}, frame_of(100));
  guest_->process();
  turn();
  EXPECT_FALSE(guest_->device().link_up());
  EXPECT_EQ(metrics_->tx_fails.value(), 1U);
}

TEST_F(Passt, length_that_no_frame_has_ends_the_link) {
  peer_writes(std::vector<std::byte>{std::byte{0}, std::byte{1}, std::byte{0}, std::byte{200}});
  turn();
  EXPECT_FALSE(guest_->device().link_up());
}

TEST_F(Passt, frame_that_is_too_large_ends_the_link_also_where_it_is_there_whole) {
  // Straight at the port, whose memory for what the buffers do not take has the size that is promised.
  constexpr std::size_t kLargest = 2 * (4 + kMaxFrame) - 4;  // what is read at once
  for (const std::size_t size : {kMaxFrame, kMaxFrame + 1, kMaxFrame + 2, std::size_t{100'000}, kLargest}) {
    for (const bool after_another : {false, true}) {
      std::array<int, 2> fds{};
      ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
      PasstBackend backend{UniqueFd(fds[0])};
      const UniqueFd peer(fds[1]);
      const auto first = with_length(frame_of(20));
      auto bytes = after_another ? first : std::vector<std::byte>();
      const auto large = with_length(frame_of(size));
      bytes.insert(bytes.end(), large.begin(), large.end());
      ASSERT_EQ(::send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(bytes.size()));
      // What lies behind the memory is seen, too, without a sanitizer.
      std::vector<std::byte> memory(2 * NetPort::kRest + 4, std::byte{0xee});
      const auto rest = std::span(memory).first(NetPort::kRest);
      NetHeader header;
      if (after_another) {
        ASSERT_EQ(backend.port(0).receive(header, no_room(), rest).bytes, 20U);
      }
      const auto received = backend.port(0).receive(header, no_room(), rest);
      if (size <= kMaxFrame) {
        EXPECT_EQ(received.status, NetPort::Status::kDone);
        EXPECT_EQ(received.bytes, size);
      } else {
        EXPECT_EQ(received.status, NetPort::Status::kClosed) << size;
        EXPECT_EQ(received.bytes, 0U);
        EXPECT_EQ(backend.port(0).receive(header, no_room(), rest).status, NetPort::Status::kClosed);
      }
      EXPECT_THAT(std::span(memory).subspan(NetPort::kRest), ::testing::Each(std::byte{0xee})) << size;
    }
  }
}

TEST_F(Passt, frame_that_is_too_short_is_lost_and_the_next_comes) {
  auto bytes = with_length(frame_of(13));
  const auto empty = with_length({});
  bytes.insert(bytes.end(), empty.begin(), empty.end());
  const auto good = with_length(frame_of(60));
  bytes.insert(bytes.end(), good.begin(), good.end());
  peer_writes(bytes);
  turn();
  EXPECT_EQ(guest_->next_frame().value().bytes, frame_of(60));
  EXPECT_EQ(metrics_->rx_fails.value(), 2U);
}

// The driver's registers on this thread, as on a vCPU's; all else on the loop's.
TEST(PasstLoop, resets_at_any_time_and_frames_go_on) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const UniqueFd peer(fds[1]);
  auto loop = EventLoop::create().value();
  NetGuest guest({.id = "loop",
                  .mac = kMac,
                  .tx_rate_limiter = {.bandwidth = std::nullopt,
                                      .ops = TokenBucketConfig{.size = 20, .refill_time_ms = 1}}},
                 std::make_unique<PasstBackend>(UniqueFd(fds[0])), *loop);
  guest.process_at_start = false;
  std::thread monitor([&loop] { EXPECT_TRUE(loop->run()); });
  std::vector<std::byte> drain(1 << 16);
  const auto bytes = with_length(frame_of(700));
  std::size_t received = 0;
  for (unsigned round = 0; round < 200 || (received == 0 && round < 20'000); ++round) {
    guest.start(kFeatures | kFeatureEventIndex);
    guest.add_rx(64, 1526);
    for (unsigned count = 0; count < 60; ++count) {
      guest.send({}, frame_of(100, count));
      guest.driver().notify(static_cast<std::uint16_t>(count % 2));
      // A whole frame or none, or the stream would be out of step: such a socket takes a small one whole.
      ::send(peer.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      ::recv(peer.get(), drain.data(), drain.size(), MSG_DONTWAIT);
    }
    while (const auto frame = guest.next_frame()) {
      EXPECT_EQ(frame->bytes, frame_of(700));
      ++received;
    }
    guest.tx().collect_all();
    EXPECT_TRUE(guest.driver().reset());
    for (auto& ring : guest.rings()) {
      EXPECT_THAT(ring->violations(), ::testing::IsEmpty());
    }
  }
  loop->stop();
  monitor.join();
  EXPECT_GT(received, 0U);
  EXPECT_TRUE(guest.device().link_up());
}

// --- The process, played by a shell ---

std::string script(const std::string& body) {
  std::string path = ::testing::TempDir() + "fake_passt_" + std::to_string(::getpid());
  std::FILE* const file = std::fopen(path.c_str(), "we");
  std::fputs(("#!/bin/sh\n" + body + "\n").c_str(), file);
  std::fclose(file);
  ::chmod(path.c_str(), 0700);
  return path;
}

class PasstChild : public ::testing::Test {
 protected:
  Result<PasstProcess::Started> start(const std::string& body) {
    path_ = script(body);
    return PasstProcess::start({.user = user_, .mtu = 1500, .program = path_});
  }
  void TearDown() override { ::unlink(path_.c_str()); }

  UserNetConfig user_;
  std::string path_;
};

TEST_F(PasstChild, missing_program_says_how_to_get_it) {
  for (const char* const program : {"/nowhere/passt", "no_such_passt"}) {
    const auto started = PasstProcess::start({.user = user_, .mtu = 1500, .program = program});
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code(), ErrorCode::kNotFound);
    EXPECT_EQ(started.error().message(), std::string(program) +
                                             " is not installed: user networking needs it "
                                             "(Debian: apt install passt), or use a tap");
  }
}

TEST_F(PasstChild, program_that_ends_at_once_is_an_error_with_its_last_words) {
  const auto started = start(
      "echo first >&2; echo 'Port 80 is taken' >&2; echo 'Failed to send 9 bytes to syslog' >&2; exit 1");
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code(), ErrorCode::kIo);
  EXPECT_EQ(started.error().message(), path_ + " ended at its start: Port 80 is taken");
}

TEST_F(PasstChild, ready_program_has_the_socket_and_its_arguments) {
  user_.forwards = {{.host_port = 8080, .guest_port = 80},
                    {.protocol = PortForward::Protocol::kUdp,
                     .host_address = "127.0.0.1",
                     .host_port = 53,
                     .guest_port = 5353}};
  auto started = start("echo $$; echo \"$@\" >&3; exec sleep 100");
  ASSERT_TRUE(started) << started.error().message();
  pollfd ready{.fd = started->socket.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&ready, 1, 10'000), 1);
  std::array<char, 500> text{};
  ASSERT_GT(::read(started->socket.get(), text.data(), text.size() - 1), 0);
  EXPECT_STREQ(
      text.data(),
      "--foreground --quiet --stderr --fd 3 --pid /proc/self/fd/1 --mtu 1500 --no-map-gw --tcp-ports 8080:80 "
      "--udp-ports 127.0.0.1/53:5353\n");
}

TEST(PasstWords, only_so_much_of_what_is_said_is_looked_at) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::pipe2(fds.data(), O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  constexpr int kMuch = 256 << 10;
  if (::fcntl(writer.get(), F_SETPIPE_SZ, kMuch) < kMuch) {
    GTEST_SKIP() << "NOT TESTED HERE: the host gives this user no larger pipe";
  }
  const std::string said = "first\n" + std::string(200 << 10, 'x');
  ASSERT_EQ(::write(writer.get(), said.data(), said.size()), static_cast<ssize_t>(said.size()));
  EXPECT_EQ(last_line(reader.get()).size(), kMostWords - 6);
  int left = 0;
  ASSERT_EQ(::ioctl(reader.get(), FIONREAD, &left), 0);
  EXPECT_EQ(static_cast<std::size_t>(left), said.size() - kMostWords);
}

TEST_F(PasstChild, program_goes_with_its_owner) {
  pid_t pid = 0;
  {
    auto started = start("echo $$; exec cat <&3 >/dev/null");
    ASSERT_TRUE(started);
    pid = started->process->pid();
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(pid, &status, WNOHANG), pid);
  EXPECT_EQ(status, 0) << "at the end of its socket, by no signal";
}

}  // namespace
}  // namespace mayfly
