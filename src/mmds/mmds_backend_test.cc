#include "mmds/mmds_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/metrics.h"
#include "support/mmds_link.h"
#include "support/tcp_packet.h"

namespace mayfly {
namespace {

using namespace std::chrono_literals;
using testing::arp_request;
using testing::frame_of;
using ::testing::IsEmpty;
using testing::MmdsLink;
using testing::mss_option;
using testing::NetFrame;
using testing::packet_of;
using ::testing::SizeIs;
using ::testing::StartsWith;
using testing::TcpPacket;

constexpr std::uint8_t kFin = TcpPacket::kFin;
constexpr std::uint8_t kSyn = TcpPacket::kSyn;
constexpr std::uint8_t kRst = TcpPacket::kRst;
constexpr std::uint8_t kPsh = TcpPacket::kPsh;
constexpr std::uint8_t kAck = TcpPacket::kAck;

std::uint64_t g_now = 1'000'000'000;
constexpr Clock kTestClock{[] { return g_now; }, [] { return g_now; }};
std::uint32_t g_initial_sequence = 0;

constexpr std::string_view kRequest = "GET /latest/short HTTP/1.1\r\n\r\n";
constexpr std::string_view kLongRequest = "GET /latest/long HTTP/1.1\r\n\r\n";

class MmdsBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    g_initial_sequence = 0xffff'ff00;  // wraps in the first response
    ASSERT_TRUE(mmds_->put(R"({"latest":{"short":"value","long":")" + std::string(10'000, 'x') + "\"}}"));
  }

  void pass(std::chrono::nanoseconds time) { g_now += static_cast<std::uint64_t>(time.count()); }

  // All that the service has to say now. Whatever the port announces must come, and nothing else.
  std::vector<TcpPacket> collect() {
    std::vector<TcpPacket> packets;
    for (;;) {
      const auto in = link_.own_frame_in();
      const auto frame = link_.receive();
      EXPECT_EQ(frame.has_value(), in && *in <= 0ns);
      if (!frame) {
        return packets;
      }
      EXPECT_EQ(frame->header, NetHeader{});
      const auto packet = packet_of(frame->bytes);
      EXPECT_TRUE(packet) << "a frame that is no good packet";
      packets.push_back(packet.value_or(TcpPacket{}));
    }
  }
  TcpPacket collect_one() {
    const auto packets = collect();
    EXPECT_THAT(packets, SizeIs(1));
    return packets.empty() ? TcpPacket{} : packets.front();
  }

  std::shared_ptr<Mmds> mmds_ = std::make_shared<Mmds>(Mmds::kDefaultSizeLimit, kTestClock);
  MmdsLink link_{mmds_, {.clock = &kTestClock, .initial_sequence = [] { return g_initial_sequence; }}};
};

// A client as simple as can be: in order, one connection.
class Client {
 public:
  explicit Client(MmdsLink& link, std::uint16_t port = 40'000, std::uint32_t first = 0xffff'fff0)
      : link_(link), port_(port), next_(first) {}

  TcpPacket segment(std::uint8_t flags, std::string_view payload = {}) const {
    TcpPacket packet;
    packet.from_port = port_;
    packet.seq = next_;
    packet.ack = (flags & kAck) != 0 ? expected_ : 0;
    packet.flags = flags;
    packet.window = window;
    packet.payload = payload;
    return packet;
  }
  void put(const TcpPacket& packet) { link_.send(frame_of(packet)); }
  // The same, and counts what was sent.
  void send(std::uint8_t flags, std::string_view payload = {}) {
    const TcpPacket packet = segment(flags, payload);
    put(packet);
    next_ += packet.length();
  }
  void open(unsigned mss = 1460) {
    TcpPacket syn = segment(kSyn);
    syn.options = mss == 0 ? testing::Octets{} : mss_option(mss);
    put(syn);
    ++next_;
    const auto frame = link_.receive();
    ASSERT_TRUE(frame);
    const auto answer = packet_of(frame->bytes);
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->flags, kSyn | kAck);
    EXPECT_EQ(answer->ack, next_);
    EXPECT_EQ(answer->to_port, port_);
    expected_ = answer->seq + 1;
    send(kAck);
  }
  // Takes a segment of the service's if it is the next in order.
  bool take(const TcpPacket& packet) {
    if (packet.seq != expected_) {
      return false;
    }
    expected_ += packet.length();
    text += packet.payload;
    fin = fin || packet.has(kFin);
    return true;
  }
  void take_all(const std::vector<TcpPacket>& packets) {
    for (const TcpPacket& packet : packets) {
      EXPECT_TRUE(take(packet));
    }
  }

  std::string text;  // of the service's, in order
  bool fin = false;
  std::uint16_t window = 65'535;
  std::uint32_t next() const { return next_; }
  std::uint32_t expected() const { return expected_; }
  void set_next(std::uint32_t next) { next_ = next; }

 private:
  MmdsLink& link_;
  std::uint16_t port_;
  std::uint32_t next_;
  std::uint32_t expected_ = 0;
};

// --- Frames ---

TEST_F(MmdsBackendTest, frames_to_others_pass_untouched) {
  TcpPacket other;
  other.to = {169, 254, 169, 253};
  TcpPacket vlan;
  std::vector<std::vector<std::byte>> frames = {
      frame_of(other), arp_request({172, 16, 0, 2}, {172, 16, 0, 1}), std::vector<std::byte>(14),
      std::vector<std::byte>(33), std::vector<std::byte>(65'000, std::byte{7})};
  frames.push_back(arp_request());
  frames.back().resize(41);  // cut before the address ends
  frames.push_back(frame_of(TcpPacket{}));
  frames.back()[12] = std::byte{0x86};  // of another type
  const NetHeader header{.flags = 1, .csum_start = 2, .csum_offset = 3};
  for (const auto& frame : frames) {
    EXPECT_EQ(link_.send(frame, header), NetPort::Status::kDone);
    ASSERT_THAT(link_.inner().port(0).from_driver, SizeIs(1));
    EXPECT_EQ(link_.inner().port(0).from_driver.back(), (NetFrame{header, frame}));
    link_.inner().port(0).from_driver.clear();
  }
  EXPECT_FALSE(link_.own_frame_in());
}

TEST_F(MmdsBackendTest, what_the_other_end_says_is_passed_on) {
  auto& inner = link_.inner().port(0);
  TcpPacket other;
  other.to = {1, 2, 3, 4};
  inner.next_send = NetPort::Status::kWouldBlock;
  EXPECT_EQ(link_.send(frame_of(other)), NetPort::Status::kWouldBlock);
  inner.to_driver.push_back({{.flags = 2}, std::vector<std::byte>(3000, std::byte{5})});
  EXPECT_EQ(link_.receive(), (NetFrame{{.flags = 2}, std::vector<std::byte>(3000, std::byte{5})}));
  inner.closed = true;
  EXPECT_FALSE(link_.receive());
  EXPECT_EQ(link_.backend().port(0).fd(), inner.fd());
  EXPECT_EQ(link_.backend().offloads(), link_.inner().offloads());
  ASSERT_TRUE(link_.backend().set_offloads({.checksum = true}));
  EXPECT_EQ(link_.inner().set, (NetOffloads{.checksum = true}));
  ASSERT_TRUE(link_.backend().use_pairs(1));
  EXPECT_EQ(link_.inner().in_use, 1U);
}

TEST_F(MmdsBackendTest, frames_of_the_service_go_first_and_fit_any_buffer) {
  link_.inner().port(0).to_driver.push_back({{}, std::vector<std::byte>(60)});
  link_.send(arp_request());
  const auto reply = link_.receive(5);
  ASSERT_TRUE(reply);
  EXPECT_THAT(reply->bytes, SizeIs(42));
  EXPECT_EQ(std::to_integer<int>(reply->bytes[21]), 2);
  EXPECT_THAT(link_.receive()->bytes, SizeIs(60));
}

TEST_F(MmdsBackendTest, frames_to_the_service_never_leave) {
  link_.inner().port(0).next_send = NetPort::Status::kWouldBlock;
  TcpPacket udp;
  udp.protocol = 17;
  TcpPacket elsewhere;
  elsewhere.to_mac = {2, 3, 4, 5, 6, 7};  // by way of a router that there may be
  for (const auto& frame : {arp_request(), arp_request({169, 254, 169, 254}), frame_of(udp),
                            frame_of(elsewhere), frame_of(TcpPacket{})}) {
    EXPECT_EQ(link_.send(frame), NetPort::Status::kDone);
  }
  EXPECT_EQ(link_.inner().port(0).send_calls, 0U);
}

// --- ARP ---

TEST_F(MmdsBackendTest, arp_request_is_answered) {
  link_.send(arp_request());
  const auto reply = link_.receive();
  ASSERT_TRUE(reply);
  const testing::Octets expected = {0x06, 0x00, 0xac, 0x10, 0x00, 0x02, 0x06, 0x01, 0x23, 0x45, 0x67,
                                    0x01, 0x08, 0x06, 0,    1,    0x08, 0,    6,    4,    0,    2,
                                    0x06, 0x01, 0x23, 0x45, 0x67, 0x01, 169,  254,  169,  254,  0x06,
                                    0x00, 0xac, 0x10, 0x00, 0x02, 172,  16,   0,    2};
  EXPECT_EQ(reply->bytes, testing::to_bytes(expected));
  EXPECT_FALSE(link_.receive());
}

TEST_F(MmdsBackendTest, other_arp_packets_are_not_answered) {
  link_.send(arp_request({169, 254, 169, 254}));  // the guest claims the address
  link_.send(arp_request({172, 16, 0, 2}, {169, 254, 169, 254}, 2));
  auto hardware = arp_request();
  hardware[15] = std::byte{6};
  link_.send(hardware);
  auto sizes = arp_request();
  sizes[18] = std::byte{8};
  link_.send(sizes);
  auto multicast = arp_request();
  multicast[6] = std::byte{1};
  link_.send(multicast);
  EXPECT_FALSE(link_.receive());
}

TEST_F(MmdsBackendTest, many_requests_are_answered_once) {
  for (int count = 0; count < 1000; ++count) {
    link_.send(arp_request());
  }
  EXPECT_TRUE(link_.receive());
  EXPECT_FALSE(link_.receive());
}

// --- IPv4 ---

TEST_F(MmdsBackendTest, malformed_packets_are_dropped_and_counted) {
  const auto counts = [] { return metrics().mmds.rx_accepted_err.value(); };
  const auto good = [] {
    TcpPacket syn;
    syn.flags = kSyn;
    return frame_of(syn);
  };
  std::vector<std::vector<std::byte>> frames(9, good());
  frames[0][14] = std::byte{0x65};  // version 6
  frames[1][14] = std::byte{0x44};  // a header of 16 bytes
  frames[2][14] = std::byte{0x4f};  // a header longer than the packet
  frames[3][17] = std::byte{0xff};  // longer than the frame
  frames[4][17] = std::byte{19};    // shorter than its header
  frames[5][24] ^= std::byte{1};    // the header's checksum
  frames[6][50] ^= std::byte{1};    // TCP's
  frames[7][46] = std::byte{0x40};  // a TCP header of 16 bytes
  frames[8][46] = std::byte{0xf0};  // one longer than the segment
  for (std::size_t index = 0; index < frames.size(); ++index) {
    const auto before = counts();
    link_.send(frames[index]);
    EXPECT_EQ(counts(), before + 1) << index;
    EXPECT_FALSE(link_.receive()) << index;
  }
}

TEST_F(MmdsBackendTest, packets_that_are_none_of_its_business_are_dropped) {
  const auto refused = [this](auto change) {
    TcpPacket packet;
    packet.flags = kSyn;
    change(packet);
    const auto before = metrics().mmds.rx_accepted_unusual.value();
    link_.send(frame_of(packet));
    EXPECT_EQ(metrics().mmds.rx_accepted_unusual.value(), before + 1);
    return !link_.receive();
  };
  EXPECT_TRUE(refused([](TcpPacket& packet) { packet.protocol = 17; }));
  EXPECT_TRUE(refused([](TcpPacket& packet) { packet.protocol = 1; }));
  EXPECT_TRUE(refused([](TcpPacket& packet) { packet.fragment = 0x2000; }));
  EXPECT_TRUE(refused([](TcpPacket& packet) { packet.fragment = 1; }));
  EXPECT_TRUE(refused([](TcpPacket& packet) { packet.from = {169, 254, 169, 254}; }));
  EXPECT_TRUE(refused([](TcpPacket& packet) { packet.from = {255, 255, 255, 255}; }));
  EXPECT_TRUE(refused([](TcpPacket& packet) { packet.from = {224, 0, 0, 1}; }));
  EXPECT_TRUE(refused([](TcpPacket& packet) { packet.from = {0, 0, 0, 0}; }));
}

TEST_F(MmdsBackendTest, options_and_padding_are_passed_over) {
  TcpPacket syn;
  syn.flags = kSyn;
  syn.ip_options = {1, 1, 1, 0};
  syn.options = {1, 1, 3, 3, 7, 1, 2, 4, 1, 0, 0, 0};  // a window scale before an MSS of 256
  auto frame = frame_of(syn);
  frame.resize(frame.size() + 40);
  link_.send(frame);
  const TcpPacket answer = collect_one();
  EXPECT_EQ(answer.flags, kSyn | kAck);
  TcpPacket request;
  request.seq = 1;
  request.ack = answer.seq + 1;
  request.flags = kAck;
  request.payload = kLongRequest;
  link_.send(frame_of(request));
  EXPECT_THAT(collect().front().payload, SizeIs(256));
}

// --- TCP: the start ---

TEST_F(MmdsBackendTest, handshake_is_answered_with_what_the_service_can) {
  TcpPacket syn;
  syn.flags = kSyn;
  syn.seq = 5000;
  link_.send(frame_of(syn));
  const TcpPacket answer = collect_one();
  EXPECT_EQ(answer.flags, kSyn | kAck);
  EXPECT_EQ(answer.seq, g_initial_sequence);
  EXPECT_EQ(answer.ack, 5001U);
  EXPECT_EQ(answer.window, 4096);
  EXPECT_EQ(answer.options, mss_option(1460));
  EXPECT_EQ(answer.to_mac, syn.from_mac);
  EXPECT_EQ(answer.from_mac, syn.to_mac);
  EXPECT_EQ(answer.to, syn.from);
  EXPECT_EQ(answer.from, syn.to);
  EXPECT_EQ(answer.from_port, 80);
  EXPECT_EQ(answer.to_port, syn.from_port);
  EXPECT_EQ(answer.ttl, 1);
}

TEST_F(MmdsBackendTest, request_is_answered_on_a_connection_that_lasts) {
  Client client(link_);
  client.open();
  for (int round = 0; round < 3; ++round) {
    client.text.clear();
    client.send(kAck | kPsh, kRequest);
    const auto packets = collect();
    ASSERT_THAT(packets, SizeIs(1));
    EXPECT_EQ(packets[0].ack, client.next());
    EXPECT_TRUE(packets[0].has(kPsh));
    client.take_all(packets);
    EXPECT_THAT(client.text, StartsWith("HTTP/1.1 200 OK\r\n"));
    EXPECT_TRUE(client.text.ends_with("\r\n\r\nvalue"));
    client.send(kAck);
    EXPECT_THAT(collect(), IsEmpty());
    EXPECT_FALSE(link_.own_frame_in());
  }
}

TEST_F(MmdsBackendTest, segments_are_as_large_as_the_client_takes) {
  for (const auto& [mss, largest] : {std::pair(1460U, 1460U), std::pair(65'535U, 1460U),
                                     std::pair(500U, 500U), std::pair(0U, 536U), std::pair(1U, 28U)}) {
    Client client(link_, static_cast<std::uint16_t>(50'000 + mss / 4));
    client.open(mss);
    client.send(kAck | kPsh, kLongRequest);
    std::size_t seen = 0;
    for (const TcpPacket& packet : collect()) {
      seen = std::max(seen, packet.payload.size());
      EXPECT_TRUE(client.take(packet));
    }
    EXPECT_EQ(seen, largest) << mss;
    EXPECT_TRUE(client.text.ends_with(std::string(10'000, 'x')));
    client.send(kRst | kAck);
  }
}

TEST_F(MmdsBackendTest, segments_fit_a_small_mtu) {
  MmdsLink link(mmds_, {.mtu = 576, .clock = &kTestClock});
  Client client(link);
  client.open();
  client.send(kAck | kPsh, kLongRequest);
  std::size_t largest = 0;
  while (const auto frame = link.receive()) {
    largest = std::max(largest, frame->bytes.size());
  }
  EXPECT_EQ(largest, 576U + 14);
}

TEST_F(MmdsBackendTest, handshake_that_is_lost_is_repeated) {
  Client client(link_);
  client.put(client.segment(kSyn));
  const TcpPacket first = collect_one();
  client.put(client.segment(kSyn));  // by the client
  EXPECT_EQ(collect_one(), first);
  EXPECT_EQ(link_.own_frame_in(), 1s);
  for (int wait = 1; wait < 32; wait *= 2) {  // by the service
    pass(std::chrono::seconds(wait) - 1ns);
    EXPECT_THAT(collect(), IsEmpty());
    pass(1ns);
    EXPECT_EQ(collect_one(), first);
  }
  pass(32s);
  const TcpPacket last = collect_one();
  EXPECT_EQ(last.flags, kRst);
  EXPECT_FALSE(link_.own_frame_in());
}

TEST_F(MmdsBackendTest, acknowledgment_of_what_was_not_sent_ends_a_handshake) {
  Client client(link_);
  client.put(client.segment(kSyn));
  const TcpPacket answer = collect_one();
  TcpPacket wrong = client.segment(kAck);
  wrong.seq = answer.ack;
  wrong.ack = answer.seq + 100;
  client.put(wrong);
  const TcpPacket reset = collect_one();
  EXPECT_EQ(reset.flags, kRst);
  EXPECT_EQ(reset.seq, answer.seq + 100);
}

TEST_F(MmdsBackendTest, unknown_connections_are_reset) {
  Client client(link_);
  TcpPacket stray = client.segment(kAck, "hello");
  stray.ack = 77;
  client.put(stray);
  TcpPacket reset = collect_one();
  EXPECT_EQ(reset.flags, kRst);
  EXPECT_EQ(reset.seq, 77U);
  client.put(client.segment(kFin));
  reset = collect_one();
  EXPECT_EQ(reset.flags, kRst | kAck);
  EXPECT_EQ(reset.ack, client.next() + 1);
  client.put(client.segment(kRst));
  EXPECT_THAT(collect(), IsEmpty());
  TcpPacket other_port = client.segment(kSyn);
  other_port.to_port = 81;
  client.put(other_port);
  reset = collect_one();
  EXPECT_EQ(reset.flags, kRst | kAck);
  EXPECT_EQ(reset.from_port, 81);
}

TEST_F(MmdsBackendTest, resets_that_wait_are_bounded) {
  for (std::uint16_t port = 1; port < 1000; ++port) {
    Client client(link_, port);
    client.put(client.segment(kAck));
  }
  EXPECT_THAT(collect(), SizeIs(Responder::kMaxResets));
}

// --- TCP: the request ---

TEST_F(MmdsBackendTest, request_in_single_bytes_is_put_together) {
  Client client(link_);
  client.open();
  for (std::size_t index = 0; index < kRequest.size(); ++index) {
    client.send(kAck, kRequest.substr(index, 1));
    client.take_all(collect());
  }
  EXPECT_TRUE(client.text.ends_with("value"));
}

TEST_F(MmdsBackendTest, segment_out_of_order_is_asked_for_again) {
  Client client(link_);
  client.open();
  const std::uint32_t start = client.next();
  TcpPacket second = client.segment(kAck, kRequest.substr(10));
  second.seq += 10;
  client.put(second);
  EXPECT_EQ(collect_one().ack, start);
  client.send(kAck, kRequest.substr(0, 10));
  EXPECT_EQ(collect_one().ack, start + 10);
  client.send(kAck, kRequest.substr(10));
  client.take_all(collect());
  EXPECT_TRUE(client.text.ends_with("value"));
}

TEST_F(MmdsBackendTest, segments_that_overlap_count_once) {
  Client client(link_);
  client.open();
  const std::uint32_t start = client.next();
  client.send(kAck, kRequest.substr(0, 20));
  EXPECT_THAT(collect(), SizeIs(1));
  client.put([&] {
    TcpPacket again = client.segment(kAck, kRequest.substr(0, 20));
    again.seq = start;
    return again;
  }());
  EXPECT_EQ(collect_one().ack, start + 20);
  client.set_next(start);
  client.send(kAck, kRequest);
  client.take_all(collect());
  EXPECT_TRUE(client.text.ends_with("value"));
  EXPECT_EQ(client.text.find("HTTP", 1), std::string::npos);
}

TEST_F(MmdsBackendTest, what_is_behind_the_window_is_not_taken) {
  Client client(link_);
  client.open();
  const std::string head = "GET /latest/short HTTP/1.1\r\nX: ";
  const std::string text = head + std::string(4096 - head.size() - 4, 'y') + "\r\n\r\n";
  client.put(client.segment(kAck | kFin, text + "GET / HTTP/1.1\r\n\r\n"));
  const auto packets = collect();
  ASSERT_FALSE(packets.empty());
  EXPECT_EQ(packets[0].ack, client.next() + 4096);  // neither the rest nor the end
  EXPECT_FALSE(packets[0].has(kFin));
  client.take_all(packets);
  EXPECT_TRUE(client.text.ends_with("value"));
}

TEST_F(MmdsBackendTest, request_that_is_too_long_is_refused) {
  Client client(link_);
  client.open();
  for (int part = 0; part < 4; ++part) {
    client.send(kAck, std::string(1024, 'a'));
    client.take_all(collect());
  }
  EXPECT_THAT(client.text, StartsWith("HTTP/1.1 431 "));
  EXPECT_TRUE(client.fin);
}

TEST_F(MmdsBackendTest, pipelined_requests_are_answered_one_after_the_other) {
  Client client(link_);
  client.open();
  client.send(kAck, std::string(kRequest) + std::string(kLongRequest) + std::string(kRequest));
  for (int round = 0; round < 3; ++round) {
    client.take_all(collect());
    client.send(kAck);
  }
  EXPECT_THAT(collect(), IsEmpty());
  std::size_t answers = 0;
  for (std::size_t at = client.text.find("HTTP/1.1 200 OK"); at != std::string::npos;
       at = client.text.find("HTTP/1.1 200 OK", at + 1)) {
    ++answers;
  }
  EXPECT_EQ(answers, 3U);
  EXPECT_TRUE(client.text.ends_with("value"));
}

TEST_F(MmdsBackendTest, closed_window_of_the_service_opens_again) {
  Client client(link_);
  client.open();
  client.send(kAck, kLongRequest);
  const auto first = collect();
  client.send(kAck, std::string(kRequest) + std::string(4096 - kRequest.size(), ' '));  // fills it
  EXPECT_EQ(collect_one().window, 0);
  client.put(client.segment(kAck, "z"));  // a probe
  TcpPacket answer = collect_one();
  EXPECT_EQ(answer.window, 0);
  EXPECT_EQ(answer.ack, client.next());
  client.take_all(first);
  client.put(client.segment(kAck, "z"));  // its acknowledgment counts all the same
  client.take_all(collect());
  EXPECT_TRUE(client.text.ends_with("value"));
}

TEST_F(MmdsBackendTest, segments_of_drivers_with_offloads_are_taken) {
  Client client(link_);
  client.open();
  const TcpPacket packet =
      client.segment(kAck, "GET /latest/short HTTP/1.1\r\nX: " + std::string(3000, 'x') + "\r\n\r\n");
  link_.send(frame_of(packet, true), {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                      .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                                      .gso_size = 1448,
                                      .csum_start = 34,
                                      .csum_offset = 16});
  client.take_all(collect());
  EXPECT_TRUE(client.text.ends_with("value"));
}

TEST_F(MmdsBackendTest, segment_larger_than_any_window_does_no_harm) {
  Client client(link_);
  client.open();
  client.put(client.segment(kAck | kFin, std::string(60'000, 'a')));
  client.take_all(collect());
  EXPECT_THAT(client.text, StartsWith("HTTP/1.1 431 "));
}

// --- TCP: the response ---

TEST_F(MmdsBackendTest, response_keeps_to_the_clients_window) {
  Client client(link_);
  client.window = 1000;
  client.open();
  client.send(kAck, kLongRequest);
  for (int round = 0; round < 20; ++round) {
    const auto packets = collect();
    std::size_t bytes = 0;
    for (const TcpPacket& packet : packets) {
      bytes += packet.payload.size();
    }
    EXPECT_LE(bytes, 1000U);
    client.take_all(packets);
    client.send(kAck);
  }
  EXPECT_TRUE(client.text.ends_with(std::string(10'000, 'x')));
}

TEST_F(MmdsBackendTest, no_part_of_a_segment_is_sent_while_others_are_under_way) {
  Client client(link_);
  client.window = 2000;
  client.open();
  client.send(kAck, kLongRequest);
  const auto packets = collect();
  ASSERT_THAT(packets, SizeIs(1));
  EXPECT_THAT(packets[0].payload, SizeIs(1460));
}

TEST_F(MmdsBackendTest, closed_window_is_probed_until_it_opens) {
  Client client(link_);
  client.window = 0;
  client.open();
  client.send(kAck, kLongRequest);
  EXPECT_EQ(collect_one().payload, "");  // an acknowledgment
  for (int probe = 0; probe < 20; ++probe) {
    EXPECT_EQ(link_.own_frame_in(), 1s);
    pass(1s);
    const TcpPacket packet = collect_one();
    EXPECT_THAT(packet.payload, SizeIs(1));
    client.put(client.segment(kAck));  // not taken, but the client lives
    EXPECT_THAT(collect(), IsEmpty());
  }
  client.window = 65'535;
  client.put(client.segment(kAck));
  client.take_all(collect());
  EXPECT_TRUE(client.text.ends_with(std::string(10'000, 'x')));
}

TEST_F(MmdsBackendTest, client_that_says_nothing_any_more_is_given_up) {
  const auto before = metrics().mmds.connections_destroyed.value();
  Client client(link_);
  client.open();
  client.send(kAck, kRequest);
  const TcpPacket first = collect_one();
  for (int wait = 1; wait < 32; wait *= 2) {
    pass(std::chrono::seconds(wait));
    EXPECT_EQ(collect_one(), first);
  }
  pass(32s);
  EXPECT_EQ(collect_one().flags, kRst);
  EXPECT_FALSE(link_.own_frame_in());
  EXPECT_EQ(metrics().mmds.connections_destroyed.value(), before + 1);
}

TEST_F(MmdsBackendTest, lost_segments_are_sent_again_from_the_first) {
  Client client(link_);
  client.open(1000);
  client.send(kAck, kLongRequest);
  const auto packets = collect();
  ASSERT_GE(packets.size(), 4U);
  EXPECT_TRUE(client.take(packets[0]));
  client.send(kAck);
  EXPECT_THAT(collect(), IsEmpty());
  pass(1s);
  const auto again = collect();
  EXPECT_EQ(again.front(), packets[1]);
  client.take_all(again);
  EXPECT_TRUE(client.text.ends_with(std::string(10'000, 'x')));
  client.send(kAck);
  EXPECT_FALSE(link_.own_frame_in());
}

TEST_F(MmdsBackendTest, acknowledgment_that_comes_late_is_believed) {
  Client client(link_);
  client.open(1000);
  client.send(kAck, kLongRequest);
  client.take_all(collect());
  pass(1s);
  EXPECT_EQ(link_.own_frame_in(), 0ns);
  EXPECT_TRUE(link_.receive());  // the first again, while the acknowledgment of all is on its way
  client.send(kAck);
  EXPECT_THAT(collect(), IsEmpty());
  EXPECT_FALSE(link_.own_frame_in());
}

TEST_F(MmdsBackendTest, acknowledgment_of_what_was_not_sent_is_answered_and_ignored) {
  Client client(link_);
  client.open();
  TcpPacket lie = client.segment(kAck, kRequest);
  lie.ack += 1000;
  client.put(lie);
  const TcpPacket answer = collect_one();
  EXPECT_EQ(answer.flags, kAck);
  EXPECT_EQ(answer.ack, client.next());
  client.send(kAck, kRequest);
  client.take_all(collect());
  EXPECT_TRUE(client.text.ends_with("value"));
}

// --- TCP: the end ---

TEST_F(MmdsBackendTest, client_ends_the_connection) {
  const auto before = metrics().mmds.connections_destroyed.value();
  Client client(link_);
  client.open();
  client.send(kAck | kFin);
  const auto packets = collect();
  ASSERT_THAT(packets, SizeIs(1));
  EXPECT_EQ(packets[0].flags, kFin | kAck);
  EXPECT_EQ(packets[0].ack, client.next());
  client.take_all(packets);
  client.send(kAck);
  EXPECT_THAT(collect(), IsEmpty());
  EXPECT_FALSE(link_.own_frame_in());
  EXPECT_EQ(metrics().mmds.connections_destroyed.value(), before + 1);
}

TEST_F(MmdsBackendTest, client_that_has_told_its_end_gets_its_answer) {
  Client client(link_);
  client.open();
  client.send(kAck | kFin | kPsh, kLongRequest);
  client.take_all(collect());
  EXPECT_TRUE(client.text.ends_with(std::string(10'000, 'x')));
  EXPECT_FALSE(client.fin);
  client.send(kAck);
  client.take_all(collect());
  EXPECT_TRUE(client.fin);
  client.send(kAck);
  EXPECT_FALSE(link_.own_frame_in());
}

TEST_F(MmdsBackendTest, service_ends_the_connection_where_the_client_wants) {
  const auto before = metrics().mmds.connections_destroyed.value();
  Client client(link_);
  client.open();
  client.send(kAck, "GET /latest/short HTTP/1.0\r\n\r\n");
  const auto packets = collect();
  ASSERT_THAT(packets, SizeIs(1));  // the end goes with the answer
  client.take_all(packets);
  EXPECT_TRUE(client.fin);
  client.send(kAck);
  EXPECT_EQ(link_.own_frame_in(), 10s);
  const TcpPacket end = client.segment(kAck | kFin);
  client.send(kAck | kFin);
  EXPECT_EQ(collect_one().ack, client.next());
  client.put(end);  // it did not hear that
  EXPECT_EQ(collect_one().ack, client.next());
  EXPECT_EQ(metrics().mmds.connections_destroyed.value(), before);
  EXPECT_EQ(link_.own_frame_in(), 1s);
  pass(1s);
  EXPECT_FALSE(link_.own_frame_in());
  EXPECT_EQ(metrics().mmds.connections_destroyed.value(), before + 1);
}

TEST_F(MmdsBackendTest, end_behind_what_was_cut_off_is_not_heard) {
  Client client(link_);
  client.open();
  client.send(kAck, "GET /latest/short HTTP/1.0\r\n\r\n");
  client.take_all(collect());
  client.put(client.segment(kAck | kFin, std::string(60'000, 'a')));
  EXPECT_EQ(collect_one().ack, client.next() + Responder::kMaxInput - 54);
  EXPECT_EQ(link_.own_frame_in(), 10s);
}

TEST_F(MmdsBackendTest, both_may_end_at_once) {
  Client client(link_);
  client.open();
  client.send(kAck, "GET /latest/short HTTP/1.0\r\n\r\n");
  const auto packets = collect();
  client.send(kAck | kFin);  // before it has seen them
  EXPECT_EQ(collect_one().ack, client.next());
  client.take_all(packets);
  client.send(kAck);
  EXPECT_EQ(link_.own_frame_in(), 1s);  // TIME-WAIT
}

TEST_F(MmdsBackendTest, end_that_is_lost_is_repeated) {
  Client client(link_);
  client.open();
  client.send(kAck | kFin);
  const TcpPacket end = collect_one();
  pass(1s);
  EXPECT_EQ(collect_one(), end);
}

TEST_F(MmdsBackendTest, client_that_never_tells_its_end_is_forgotten) {
  Client client(link_);
  client.open();
  client.send(kAck, "GET /latest/short HTTP/1.0\r\n\r\n");
  client.take_all(collect());
  client.send(kAck);
  for (int second = 0; second < 9; ++second) {
    pass(1s);
    client.send(kAck, "more");  // passed over
    EXPECT_EQ(collect_one().ack, client.next());
  }
  pass(1s);
  EXPECT_FALSE(link_.own_frame_in());
  client.send(kAck, "more");
  EXPECT_EQ(collect_one().flags, kRst);
}

TEST_F(MmdsBackendTest, port_can_be_used_again_at_once) {
  Client client(link_);
  client.open();
  client.send(kAck, "GET /latest/short HTTP/1.0\r\n\r\n");
  client.take_all(collect());
  client.send(kAck | kFin);
  EXPECT_THAT(collect(), SizeIs(1));
  TcpPacket late = client.segment(kSyn);  // one from before
  late.seq -= 1000;
  client.put(late);
  EXPECT_EQ(collect_one().flags, kAck);
  Client next(link_, 40'000, client.next() + 1000);
  next.open();
  next.send(kAck, kRequest);
  next.take_all(collect());
  EXPECT_TRUE(next.text.ends_with("value"));
}

TEST_F(MmdsBackendTest, reset_ends_a_connection_at_the_right_number_only) {
  Client client(link_);
  client.open();
  TcpPacket reset = client.segment(kRst);
  reset.seq += 1;
  client.put(reset);
  EXPECT_EQ(collect_one().flags, kAck);  // asks
  reset.seq += 5000;
  client.put(reset);
  EXPECT_THAT(collect(), IsEmpty());
  reset.seq = client.next();
  client.put(reset);
  EXPECT_THAT(collect(), IsEmpty());
  client.send(kAck);
  EXPECT_EQ(collect_one().flags, kRst);  // it is gone
}

TEST_F(MmdsBackendTest, syn_on_an_open_connection_is_asked_about) {
  Client client(link_);
  client.open();
  TcpPacket syn = client.segment(kSyn);
  syn.seq += 12345;
  client.put(syn);
  const TcpPacket answer = collect_one();
  EXPECT_EQ(answer.flags, kAck);
  EXPECT_EQ(answer.ack, client.next());
  client.send(kAck, kRequest);
  EXPECT_THAT(collect(), SizeIs(1));
}

// --- Bounds ---

TEST_F(MmdsBackendTest, idle_connection_makes_room_for_another) {
  std::vector<Client> clients;
  for (std::uint16_t index = 0; index < Responder::kMaxConnections; ++index) {
    clients.emplace_back(link_, static_cast<std::uint16_t>(1000 + index));
    clients.back().open();
    pass(1ms);
  }
  Client early(link_, 1999);
  early.put(early.segment(kSyn));
  EXPECT_THAT(collect(), IsEmpty());  // all have just spoken
  pass(500ms);
  clients[0].send(kAck, kRequest);  // not idle any more
  clients[0].take_all(collect());
  Client another(link_, 2000);
  another.put(another.segment(kSyn));
  bool reset = false;
  for (const TcpPacket& packet : collect()) {
    if (packet.has(kRst)) {
      reset = true;
      EXPECT_EQ(packet.to_port, 1001);
      EXPECT_EQ(packet.seq, clients[1].expected());
    }
  }
  EXPECT_TRUE(reset);
}

TEST_F(MmdsBackendTest, busy_connections_do_not_make_room_until_they_are_stale) {
  for (std::uint16_t index = 0; index < Responder::kMaxConnections; ++index) {
    Client client(link_, static_cast<std::uint16_t>(1000 + index));
    client.window = 10;
    client.open();
    client.send(kAck, kLongRequest);
    EXPECT_FALSE(collect().empty());
  }
  Client another(link_, 2000);
  another.put(another.segment(kSyn));
  EXPECT_THAT(collect(), IsEmpty());
  pass(900ms);
  another.put(another.segment(kSyn));
  EXPECT_THAT(collect(), IsEmpty());
  pass(10s);
  another.put(another.segment(kSyn));
  bool accepted = false;
  for (const TcpPacket& packet : collect()) {
    accepted = accepted || (packet.to_port == 2000 && packet.flags == (kSyn | kAck));
  }
  EXPECT_TRUE(accepted);
}

TEST_F(MmdsBackendTest, flood_of_handshakes_leaves_room_for_the_service) {
  for (std::uint16_t port = 1; port < 2000; ++port) {
    Client client(link_, port);
    client.put(client.segment(kSyn));
    (void)link_.receive();
  }
  pass(500ms);
  Client client(link_, 5000);
  client.put(client.segment(kSyn));
  bool answered = false;
  for (const TcpPacket& packet : collect()) {
    answered = answered || packet.to_port == 5000;
  }
  EXPECT_TRUE(answered);
}

TEST_F(MmdsBackendTest, connections_are_told_apart_by_address_too) {
  Client first(link_);
  first.open();
  TcpPacket other = Client(link_, 40'000, 7).segment(kSyn);
  other.from = {172, 16, 0, 3};
  link_.send(frame_of(other));
  const TcpPacket answer = collect_one();
  EXPECT_EQ(answer.to, other.from);
  EXPECT_EQ(answer.ack, 8U);
}

TEST_F(MmdsBackendTest, any_pair_may_carry_a_connection) {
  MmdsLink link(mmds_, {.clock = &kTestClock}, 3);
  TcpPacket syn;
  syn.flags = kSyn;
  link.send(frame_of(syn), {}, 2);
  EXPECT_EQ(link.own_frame_in(2), 0ns);
  EXPECT_TRUE(link.receive(2000, 2));
}

TEST_F(MmdsBackendTest, every_frame_is_counted) {
  MmdsMetrics& counts = metrics().mmds;
  const auto accepted = counts.rx_accepted.value();
  const auto received = counts.rx_count.value();
  const auto frames = counts.tx_frames.value();
  const auto bytes = counts.tx_bytes.value();
  const auto created = counts.connections_created.value();
  Client client(link_);
  client.open();
  client.send(kAck, kRequest);
  const auto packets = collect();
  EXPECT_EQ(counts.rx_accepted.value(), accepted + 3);
  EXPECT_EQ(counts.rx_count.value(), received + 3);
  EXPECT_EQ(counts.tx_frames.value(), frames + 2);
  EXPECT_EQ(counts.tx_bytes.value(), bytes + 58 + 54 + packets.at(0).payload.size());
  EXPECT_EQ(counts.connections_created.value(), created + 1);
}

}  // namespace
}  // namespace mayfly
