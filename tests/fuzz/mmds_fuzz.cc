// The metadata service under a guest that mostly keeps to TCP and HTTP, and sometimes lies: segments of a few
// connections at once, lost and repeated in both directions, frames of any bytes, time, and a host that
// writes. Each byte of the input is a decision.
//
// Held: nothing aborts; every frame to the guest is an ARP reply or a good packet from the service's address
// that fits what its client can take; a port that announces a frame has one; it comes to rest; its memory is
// bounded; frames to others, and only those, reach the network; and a client that told no lie reads HTTP.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mmds/responder.h"
#include "support/fuzz_input.h"
#include "support/mmds_link.h"
#include "support/tcp_packet.h"

namespace mayfly::testing {
namespace {

std::uint64_t g_now = 0;
std::uint32_t g_initial_sequence = 0;
constexpr Clock kFuzzClock{[] { return g_now; }, [] { return g_now; }};

constexpr std::uint8_t kFin = TcpPacket::kFin;
constexpr std::uint8_t kSyn = TcpPacket::kSyn;
constexpr std::uint8_t kRst = TcpPacket::kRst;
constexpr std::uint8_t kPsh = TcpPacket::kPsh;
constexpr std::uint8_t kAck = TcpPacket::kAck;

// One of the guest's connections.
struct Client {
  std::uint16_t port = 0;
  bool known = false;       // a SYN went out
  bool open = false;        // and was answered
  bool honest = true;       // and all that it sent since was true
  std::uint32_t first = 0;  // the sequence number of its first byte
  std::uint32_t sent = 0;   // bytes of `text`
  std::uint32_t acknowledged = 0;
  std::string text;  // all that it has to say
  std::uint32_t expected = 0;
  std::string heard;
  std::uint16_t window = 65'535;
  std::uint32_t edge = 0;  // of the window, as it was promised
  unsigned mss = 536;
};

class Exerciser : private FuzzInput {
 public:
  explicit Exerciser(std::span<const std::uint8_t> input) : FuzzInput(input) {}

  void run() {
    g_now = 1'000'000'000;
    g_initial_sequence = 0xffff'0000;
    mmds_ = std::make_shared<Mmds>(2000, kFuzzClock);
    const std::uint8_t shape = byte();
    mmds_->configure(
        {.version = (shape & 1) != 0 ? MmdsVersion::kV2 : MmdsVersion::kV1, .imds_compat = (shape & 2) != 0});
    (void)mmds_->put(R"({"latest":{"a":"b","long":")" + std::string(1800, 'x') + "\"}}");
    link_ = std::make_unique<MmdsLink>(
        mmds_, ResponderSettings{.mtu = static_cast<std::uint16_t>((shape & 4) != 0 ? 300 : 1500),
                                 .clock = &kFuzzClock,
                                 .initial_sequence = [] { return g_initial_sequence += 0x1234'5678; }});
    link_->inner().port(0).to_driver.clear();
    clients_.resize(4);
    for (std::size_t index = 0; index < clients_.size(); ++index) {
      clients_[index].port = static_cast<std::uint16_t>(1000 + index);
    }
    while (!empty()) {
      step();
    }
    rest();
  }

 private:
  Client& client() { return clients_[byte() % clients_.size()]; }

  void step() {
    switch (byte() % 16) {
      case 0:
        open(client());
        break;
      case 1:
      case 2:
        ask(client());
        break;
      case 3:
      case 4:
      case 5:
        say(client());
        break;
      case 6:
        acknowledge(client());
        break;
      case 7:
      case 8:
        listen(byte() % 8U + 1);
        break;
      case 9:
        end(client());
        break;
      case 10:
        g_now += std::uint64_t{byte()} * byte() * 1'000'000;
        break;
      case 11:
        client().window = word();
        break;
      case 12:
        host();
        break;
      case 13:
        arp();
        break;
      case 14:
        flood();
        break;
      default:
        lie(client());
        break;
    }
    if (link_->inner().port(0).from_driver.size() != others_) {
      broken("frames to others reach the network, and no other");
    }
    others_ = 0;
    link_->inner().port(0).from_driver.clear();
  }

  TcpPacket segment(const Client& client, std::uint8_t flags) const {
    TcpPacket packet;
    packet.from_port = client.port;
    packet.seq = client.first + client.sent;
    packet.ack = client.expected;
    packet.flags = flags;
    packet.window = client.window;
    return packet;
  }
  void put(Client& client, const TcpPacket& packet) {
    client.edge = packet.ack + packet.window;
    const bool partial = (packet.seq & 1) != 0;
    link_->send(frame_of(packet, partial),
                partial ? NetHeader{.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16}
                        : NetHeader{});
  }

  void open(Client& client) {
    const std::uint16_t port = client.port;
    client = {};
    client.port = static_cast<std::uint16_t>(port + 4);
    client.known = true;
    client.first = word() * 0x1'0001U;
    client.window = byte() % 4 == 0 ? byte() : std::uint16_t{65'535};
    const std::uint16_t mss = word();
    TcpPacket syn = segment(client, kSyn);
    syn.seq = client.first - 1;
    syn.ack = 0;
    if ((mss & 1) != 0) {
      client.mss = std::max<unsigned>(mss, 28);
      syn.options = mss_option(mss);
    }
    put(client, syn);
    if (byte() % 8 != 0) {
      listen(100);
    }
  }

  void ask(Client& client) {
    constexpr std::array<const char*, 8> kRequests = {
        "GET /latest/a HTTP/1.1\r\n\r\n",
        "GET /latest/long HTTP/1.1\r\nAccept: application/json\r\n\r\n",
        "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n",
        "GET /2009-04-04/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "GET /none HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        "HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /latest/long HTTP/1.1\r\nX-metadata-token: ",
        "\r\n",
    };
    if (client.text.size() > 20'000) {
      return;
    }
    const std::uint8_t which = byte();
    if (which >= 0xf0) {
      for (unsigned count = byte(); count != 0; --count) {
        client.text += static_cast<char>(byte());
      }
    } else {
      client.text += kRequests[which % kRequests.size()];
    }
    say(client);
  }

  // Some of what is to be said, from somewhere at or before what was said already.
  void say(Client& client) {
    if (!client.open) {
      return;
    }
    const std::uint8_t how = byte();
    if (how >= 0xe0) {
      client.sent = client.acknowledged;  // again
    }
    TcpPacket packet = segment(client, kAck | kPsh);
    const std::size_t left = client.text.size() - client.sent;
    packet.payload =
        client.text.substr(client.sent, how < 0x80 ? left : std::min<std::size_t>(left, how & 31));
    client.sent += static_cast<std::uint32_t>(packet.payload.size());
    if (how % 16 != 15) {  // else it is lost
      put(client, packet);
    }
    if (how % 4 == 0) {
      listen(100);
    }
  }

  void acknowledge(Client& client) {
    if (client.open) {
      put(client, segment(client, kAck));
    }
  }

  void end(Client& client) {
    if (!client.known) {
      return;
    }
    const std::uint8_t how = byte();
    put(client, segment(client, how < 0xc0 ? kFin | kAck : kRst));
    client.known = client.open = false;
    listen(100);
  }

  void host() {
    switch (byte() % 4) {
      case 0:
        (void)mmds_->put(R"({"latest":{"a":1,"long":["x"]}})");
        break;
      case 1:
        (void)mmds_->patch(R"({"latest":{"long":null,"a":{"b":"c"}}})");
        break;
      case 2: {
        std::string text;
        for (unsigned count = byte() % 40; count != 0; --count) {
          text += static_cast<char>(byte());
        }
        (void)mmds_->put(text);
        break;
      }
      default:
        (void)mmds_->read("/latest/long", Mmds::Format::kText);
        break;
    }
  }

  void arp() {
    const std::uint8_t target = byte() % 4 == 0 ? std::uint8_t{1} : std::uint8_t{254};
    others_ += target == 1 ? 1U : 0U;
    link_->send(
        arp_request({172, 16, 0, 2}, {169, 254, 169, target}, byte() % 8 == 0 ? byte() : std::uint8_t{1}));
  }

  void flood() {
    TcpPacket packet;
    packet.flags = byte();
    for (unsigned count = byte() % 64; count != 0; --count) {
      ++packet.from_port;
      link_->send(frame_of(packet));
    }
    listen(byte());
  }

  // A frame of which something is not as it should be.
  void lie(Client& client) {
    client.honest = false;
    TcpPacket packet = segment(client, byte());
    switch (byte() % 8) {
      case 0:
        packet.seq += word() - 0x8000U;
        break;
      case 1:
        packet.ack += word() - 0x8000U;
        break;
      case 2:
        packet.options = Octets{byte(), byte(), byte(), byte()};
        break;
      case 3:
        packet.fragment = word();
        packet.protocol = byte();
        break;
      case 4:
        packet.to_port = byte();
        packet.from[0] = byte();
        break;
      case 5:
        packet.ip_options = Octets(std::size_t{byte()} % 10 * 4, 1);
        break;
      default:
        break;
    }
    packet.payload.assign(byte() % 8 == 0 ? word() % 60'000U : byte(), 'z');
    auto frame = frame_of(packet);
    for (unsigned count = byte() % 4; count != 0; --count) {
      frame[word() % std::min<std::size_t>(frame.size(), 80)] = std::byte{byte()};
    }
    if (byte() % 4 == 0) {
      frame.resize(1 + word() % frame.size());
    }
    const bool ours = is_for_service(frame);
    others_ += ours ? 0U : 1U;
    link_->send(frame, {.flags = static_cast<std::uint8_t>(byte() & 1)}, 0, byte());
    // It may have had another's port.
    for (Client& other : clients_) {
      other.honest = false;
    }
  }

  static bool is_for_service(std::span<const std::byte> frame) {
    const auto address_at = [frame](std::size_t at) {
      return frame.size() >= at + 4 && frame[at] == std::byte{169} && frame[at + 1] == std::byte{254} &&
             frame[at + 2] == std::byte{169} && frame[at + 3] == std::byte{254};
    };
    if (frame.size() < 34 || frame[12] != std::byte{8}) {
      return false;
    }
    return (frame[13] == std::byte{0} && address_at(30)) || (frame[13] == std::byte{6} && address_at(38));
  }

  // Takes up to `most` frames to the guest.
  void listen(std::size_t most) {
    for (; most != 0; --most) {
      const auto in = link_->own_frame_in();
      const bool announced = in && in->count() <= 0;
      const auto frame = link_->receive(64);
      if (announced != frame.has_value()) {
        broken("a port that announces a frame has one, and no other");
      }
      if (!frame) {
        return;
      }
      hear(*frame);
    }
  }

  void hear(const NetFrame& frame) {
    if (frame.header != NetHeader{}) {
      broken("the service needs no offloads");
    }
    if (frame.bytes.size() == 42) {
      return;  // an ARP reply
    }
    const auto packet = packet_of(frame.bytes);
    if (!packet || packet->from != TcpPacket{}.to || packet->ttl != 1) {
      broken("every frame to the guest is a good packet of the service's");
    }
    const auto found = std::ranges::find_if(clients_, [&](const Client& client) {
      return client.known && client.port == packet->to_port && packet->to == TcpPacket{}.from &&
             packet->from_port == 80;
    });
    if (found != clients_.end()) {
      hear(*found, *packet);
    }
  }

  void hear(Client& client, const TcpPacket& packet) {
    if (packet.has(kRst)) {
      client.known = client.open = false;
      return;
    }
    if (packet.payload.size() > std::max(28U, client.mss)) {
      broken("no segment is larger than the client can take");
    }
    if (packet.has(kSyn)) {
      if (!client.open) {
        client.open = true;
        client.expected = packet.seq + 1;
        put(client, segment(client, kAck));
      }
      return;
    }
    if (!client.open) {
      return;
    }
    const std::uint32_t taken = packet.ack - client.first;
    if (client.honest && taken > client.text.size() + 1) {
      broken("nothing is acknowledged that was not sent");
    }
    if (taken <= client.text.size()) {
      client.acknowledged = std::max(client.acknowledged, taken);
      client.sent = std::max(client.sent, client.acknowledged);
    }
    // A probe of one byte may go beyond the window.
    const auto beyond = static_cast<std::int32_t>(
        packet.seq + static_cast<std::uint32_t>(packet.payload.size()) - client.edge);
    if (client.honest && beyond > 1 && packet.payload.size() > client.window) {
      broken("no more is sent than the client's window has room for");
    }
    if (packet.seq == client.expected) {
      client.expected += packet.length();
      client.heard += packet.payload;
      constexpr std::string_view kStart = "HTTP/1.1 ";
      if (client.honest && !client.heard.starts_with(kStart.substr(0, client.heard.size()))) {
        broken("what an honest client hears is HTTP");
      }
      if (packet.has(kFin)) {
        put(client, segment(client, kFin | kAck));
        client.known = client.open = false;
        return;
      }
    }
    if (packet.length() != 0 && byte() % 8 != 0) {
      put(client, segment(client, kAck));
    }
  }

  // A guest that says nothing any more: everything ends by itself, or waits for it in silence.
  void rest() {
    for (Client& client : clients_) {
      client.known = client.open = false;
    }
    for (int round = 0; round < 2000; ++round) {
      const auto in = link_->own_frame_in();
      if (!in) {
        return;
      }
      g_now += static_cast<std::uint64_t>(std::max<std::int64_t>(in->count(), 0));
      listen(1000);
    }
    broken("the service comes to rest");
  }

  std::shared_ptr<Mmds> mmds_;
  std::unique_ptr<MmdsLink> link_;
  std::vector<Client> clients_;
  std::size_t others_ = 0;  // frames that must reach the network
};

}  // namespace
}  // namespace mayfly::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::testing::Exerciser({data, size}).run();
  return 0;
}
