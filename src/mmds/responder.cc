#include "mmds/responder.h"

#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/metrics.h"
#include "mmds/wire.h"

namespace mayfly {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::size_t kEthernet = 14;
constexpr std::size_t kArp = 28;
constexpr std::size_t kIpv4 = 20;
constexpr std::size_t kTcp = 20;

constexpr std::uint16_t kTypeIpv4 = 0x0800;
constexpr std::uint16_t kTypeArp = 0x0806;
constexpr std::uint8_t kProtocolTcp = 6;
constexpr std::uint16_t kArpRequest = 1;
constexpr std::uint16_t kArpReply = 2;

// Where things lie in a frame.
constexpr std::size_t kSourceMac = 6;
constexpr std::size_t kType = 12;
constexpr std::size_t kArpSender = kEthernet + 8;
constexpr std::size_t kArpSenderAddress = kEthernet + 14;
constexpr std::size_t kArpTargetAddress = kEthernet + 24;
constexpr std::size_t kIpSource = kEthernet + 12;
constexpr std::size_t kIpDestination = kEthernet + 16;

template <std::size_t Size>
std::array<std::uint8_t, Size> octets(Bytes bytes, std::size_t offset) {
  std::array<std::uint8_t, Size> result;
  std::memcpy(result.data(), bytes.subspan(offset, Size).data(), Size);
  return result;
}

Ipv4Address address_at(Bytes bytes, std::size_t offset) {
  return {octets<4>(bytes, offset)};
}
MacAddress mac_at(Bytes bytes, std::size_t offset) {
  return {octets<6>(bytes, offset)};
}

template <std::size_t Size>
void store(std::span<std::byte> bytes, std::size_t offset, const std::array<std::uint8_t, Size>& octets) {
  std::memcpy(bytes.subspan(offset, Size).data(), octets.data(), Size);
}

// RFC 791: hosts that can be answered. Not 0.x, and neither multicast nor broadcast.
bool is_host(const Ipv4Address& address) {
  return address.octets[0] != 0 && address.octets[0] < 224;
}

// What goes into TCP's checksum beside the segment (RFC 9293, 3.1).
wire::Checksum pseudo_header(Bytes addresses, std::size_t segment) {
  wire::Checksum sum;
  sum.add(addresses);
  sum.add(kProtocolTcp);
  sum.add(segment);
  return sum;
}

// RFC 9293, 3.2. Options that are cut off end the list.
std::optional<std::uint16_t> find_mss(Bytes options) {
  constexpr std::uint8_t kEnd = 0;
  constexpr std::uint8_t kNothing = 1;
  constexpr std::uint8_t kMss = 2;
  while (!options.empty()) {
    const std::uint8_t kind = wire::load_u8(options, 0);
    if (kind == kNothing) {
      options = options.subspan(1);
      continue;
    }
    const std::size_t size = kind != kEnd && options.size() > 1 ? wire::load_u8(options, 1) : 0;
    if (size < 2 || size > options.size()) {
      return std::nullopt;
    }
    if (kind == kMss && size == 4) {
      return wire::load_u16(options, 2);
    }
    options = options.subspan(size);
  }
  return std::nullopt;
}

}  // namespace

std::uint32_t random_sequence() {
  std::uint32_t value = 0;
  MAYFLY_CHECK(::getrandom(&value, sizeof(value), 0) == sizeof(value), "the kernel has random numbers");
  return value;
}

Responder::Responder(std::shared_ptr<Mmds> mmds, const ResponderSettings& settings)
    : mmds_(std::move(mmds)), settings_(settings) {
  constexpr std::size_t kSmallestMtu = 68;  // RFC 791
  const auto packet = std::clamp<std::size_t>(settings_.mtu, kSmallestMtu, kMaxOutput - kEthernet);
  max_segment_ = static_cast<std::uint16_t>(packet - kIpv4 - kTcp);
}

bool Responder::concerns(Bytes start) const {
  if (start.size() < kIpDestination + 4) {
    return false;
  }
  switch (wire::load_u16(start, kType)) {
    case kTypeIpv4:
      return address_at(start, kIpDestination) == settings_.address;
    case kTypeArp:
      return start.size() >= kArpTargetAddress + 4 &&
             address_at(start, kArpTargetAddress) == settings_.address;
    default:
      return false;
  }
}

void Responder::accept(Bytes frame, std::size_t size, bool trusted) {
  MmdsMetrics& counts = metrics().mmds;
  counts.rx_accepted.add();
  const MacAddress source = mac_at(frame, kSourceMac);
  if (source.is_multicast() || source.is_zero()) {
    counts.rx_bad_eth.add();
    return;
  }
  ready_ = true;
  if (wire::load_u16(frame, kType) == kTypeArp) {
    accept_arp(frame);
  } else if (!accept_ipv4(frame, size, trusted)) {
    counts.rx_accepted_err.add();
  }
}

// RFC 826. Whoever claims the address, or announces another, is not answered.
void Responder::accept_arp(Bytes frame) {
  constexpr std::uint16_t kHardware = 1;
  constexpr std::uint16_t kSizes = 0x0604;
  const Ipv4Address sender = address_at(frame, kArpSenderAddress);
  if (wire::load_u16(frame, kEthernet) != kHardware || wire::load_u16(frame, kEthernet + 2) != kTypeIpv4 ||
      wire::load_u16(frame, kEthernet + 4) != kSizes || wire::load_u16(frame, kEthernet + 6) != kArpRequest ||
      sender == settings_.address) {
    metrics().mmds.rx_accepted_unusual.add();
    return;
  }
  arp_reply_ = ArpReply{.mac = mac_at(frame, kArpSender), .address = sender};
}

// False where it is no such packet.
bool Responder::accept_ipv4(Bytes frame, std::size_t size, bool trusted) {
  const Bytes packet = frame.subspan(kEthernet);
  const std::size_t header = (wire::load_u8(packet, 0) & 15U) * 4;
  const std::size_t total = wire::load_u16(packet, 2);
  if (wire::load_u8(packet, 0) >> 4 != 4 || header < kIpv4 || total < header || total > size - kEthernet ||
      header > packet.size()) {
    return false;
  }
  wire::Checksum sum;
  sum.add(packet.first(header));
  if (!trusted && sum.value() != 0) {
    return false;
  }
  constexpr std::uint16_t kFragment = 0x3fff;  // the flag for more, and the offset
  const Ipv4Address source = address_at(frame, kIpSource);
  if ((wire::load_u16(packet, 6) & kFragment) != 0 || wire::load_u8(packet, 9) != kProtocolTcp ||
      !is_host(source) || source == settings_.address) {
    metrics().mmds.rx_accepted_unusual.add();
    return true;
  }
  // As much of the segment as is here: what lies behind is behind every window, its end too.
  const std::size_t whole = total - header;
  const Bytes segment = packet.subspan(header, std::min(whole, packet.size() - header));
  if (segment.size() < kTcp) {
    return false;
  }
  const std::size_t offset = static_cast<std::size_t>(wire::load_u8(segment, 12) >> 4) * 4;
  if (offset < kTcp || offset > segment.size()) {
    return false;
  }
  const bool cut = segment.size() < whole;
  wire::Checksum tcp_sum = pseudo_header(frame.subspan(kIpSource, 8), whole);
  tcp_sum.add(segment);
  if (!trusted && !cut && tcp_sum.value() != 0) {
    return false;
  }
  metrics().mmds.rx_count.add();
  TcpSegment parsed{
      .sequence = wire::load_u32(segment, 4),
      .acknowledgment = wire::load_u32(segment, 8),
      .flags = wire::load_u8(segment, 13),
      .window = wire::load_u16(segment, 14),
      .payload = segment.subspan(offset),
  };
  if (cut) {
    parsed.flags &= static_cast<std::uint8_t>(~kTcpFin);
  }
  if (parsed.has(kTcpSyn)) {
    parsed.mss = find_mss(segment.first(offset).subspan(kTcp));
  }
  accept_segment({.mac = mac_at(frame, kSourceMac),
                  .address = source,
                  .port = wire::load_u16(segment, 0),
                  .our_port = wire::load_u16(segment, 2)},
                 parsed);
  return true;
}

void Responder::accept_segment(const Peer& peer, const TcpSegment& segment) {
  const std::uint64_t now = settings_.clock->monotonic_ns();
  const bool opens = (segment.flags & (kTcpSyn | kTcpAck | kTcpRst | kTcpFin)) == kTcpSyn;
  const auto known = std::ranges::find_if(connections_, [&peer](const Entry& entry) {
    return entry.peer.address == peer.address && entry.peer.port == peer.port &&
           entry.peer.our_port == peer.our_port && !entry.connection.done();
  });
  if (known != connections_.end()) {
    if (!opens || !known->connection.gives_way_to(segment)) {
      known->connection.receive(segment, now);
      if (known->connection.done() && known->connection.due() != 0) {
        remove(static_cast<std::size_t>(known - connections_.begin()));
      }
      return;
    }
    remove(static_cast<std::size_t>(known - connections_.begin()));
  }
  if (!opens || peer.our_port != kPort) {
    refuse(peer, segment);
  } else if (make_room(now)) {
    metrics().mmds.connections_created.add();
    connections_.push_back(
        {.peer = peer,
         .connection = TcpConnection(*mmds_, segment, settings_.initial_sequence(), max_segment_, now)});
  }
}

bool Responder::make_room(std::uint64_t now) {
  if (connections_.size() < kMaxConnections) {
    return true;
  }
  const auto rank = [now](const Entry& entry) {
    const std::uint64_t silent = now - entry.connection.last_heard();
    const bool stays = !entry.connection.over() && silent < (entry.connection.idle() ? kIdle : kStale);
    return std::pair(stays, entry.connection.last_heard());
  };
  const auto first = std::ranges::min_element(connections_, {}, rank);
  if (rank(*first).first) {
    return false;
  }
  queue_reset(first->peer, first->connection.farewell());
  remove(static_cast<std::size_t>(first - connections_.begin()));
  return true;
}

void Responder::remove(std::size_t index) {
  connections_.erase(connections_.begin() + static_cast<std::ptrdiff_t>(index));
  metrics().mmds.connections_destroyed.add();
}

// RFC 9293, 3.10.7.1: what belongs to no connection is told so, but for a reset.
void Responder::refuse(const Peer& peer, const TcpSegment& segment) {
  if (segment.has(kTcpRst)) {
    return;
  }
  if (segment.has(kTcpAck)) {
    queue_reset(peer, {.sequence = segment.acknowledgment, .flags = kTcpRst});
  } else {
    queue_reset(peer, {.acknowledgment = segment.sequence + segment.length(), .flags = kTcpRst | kTcpAck});
  }
}

void Responder::queue_reset(const Peer& peer, const TcpSegment& segment) {
  if (resets_.size() < kMaxResets) {
    resets_.push_back({.peer = peer, .segment = segment});
  }
}

std::size_t Responder::send(std::span<std::byte, kMaxOutput> frame) {
  std::size_t size = 0;
  if (arp_reply_) {
    size = write_arp(*std::exchange(arp_reply_, std::nullopt), frame);
  } else if (!resets_.empty()) {
    size = write_tcp(resets_.back().peer, resets_.back().segment, frame);
    resets_.pop_back();
  } else if (!connections_.empty()) {
    const std::uint64_t now = settings_.clock->monotonic_ns();
    for (std::size_t left = connections_.size(); left != 0 && size == 0; --left) {
      turn_ = turn_ + 1 < connections_.size() ? turn_ + 1 : 0;
      Entry& entry = connections_[turn_];
      if (entry.connection.due() <= now && !entry.connection.expired(now)) {
        if (const auto segment = entry.connection.next(now)) {
          size = write_tcp(entry.peer, *segment, frame);
        }
      }
      if (entry.connection.done()) {
        metrics().mmds.tx_errors.add(entry.connection.gave_up() ? 1 : 0);
        remove(turn_);
      }
    }
  }
  ready_ = size != 0;
  if (ready_) {
    metrics().mmds.tx_count.add();
    metrics().mmds.tx_frames.add();
    metrics().mmds.tx_bytes.add(size);
  }
  return size;
}

std::optional<std::chrono::nanoseconds> Responder::due_in() {
  const std::uint64_t now = connections_.empty() ? 0 : settings_.clock->monotonic_ns();
  std::uint64_t due = arp_reply_ || !resets_.empty() ? 0 : UINT64_MAX;
  for (std::size_t index = connections_.size(); index-- != 0;) {
    if (connections_[index].connection.expired(now)) {
      remove(index);
    } else {
      due = std::min(due, connections_[index].connection.due());
    }
  }
  if (due == UINT64_MAX) {
    return std::nullopt;
  }
  ready_ = ready_ || due <= now;
  return std::chrono::nanoseconds(due > now ? due - now : 0);
}

std::size_t Responder::write_arp(const ArpReply& reply, std::span<std::byte, kMaxOutput> frame) const {
  store(frame, 0, reply.mac.octets);
  store(frame, kSourceMac, kMac.octets);
  wire::store_u16(frame, kType, kTypeArp);
  wire::store_u16(frame, kEthernet, 1);
  wire::store_u16(frame, kEthernet + 2, kTypeIpv4);
  wire::store_u16(frame, kEthernet + 4, 0x0604);
  wire::store_u16(frame, kEthernet + 6, kArpReply);
  store(frame, kArpSender, kMac.octets);
  store(frame, kArpSenderAddress, settings_.address.octets);
  store(frame, kArpSender + 10, reply.mac.octets);
  store(frame, kArpTargetAddress, reply.address.octets);
  return kEthernet + kArp;
}

std::size_t Responder::write_tcp(const Peer& peer, const TcpSegment& segment,
                                 std::span<std::byte, kMaxOutput> frame) const {
  const std::size_t options = segment.mss ? 4 : 0;
  const std::size_t tcp_size = kTcp + options + segment.payload.size();
  store(frame, 0, peer.mac.octets);
  store(frame, kSourceMac, kMac.octets);
  wire::store_u16(frame, kType, kTypeIpv4);

  const std::span<std::byte> ip = frame.subspan(kEthernet, kIpv4);
  constexpr std::uint8_t kVersionAndSize = 0x45;
  constexpr std::uint16_t kDoNotFragment = 0x4000;
  wire::store_u16(ip, 0, kVersionAndSize << 8);
  wire::store_u16(ip, 2, static_cast<std::uint16_t>(kIpv4 + tcp_size));
  wire::store_u16(ip, 4, 0);  // RFC 6864, 4.1: any, for it is never in fragments
  wire::store_u16(ip, 6, kDoNotFragment);
  wire::store_u8(ip, 8, 1);  // hops: the guest itself, and nobody whom it forwards packets to
  wire::store_u8(ip, 9, kProtocolTcp);
  wire::store_u16(ip, 10, 0);
  store(frame, kIpSource, settings_.address.octets);
  store(frame, kIpDestination, peer.address.octets);
  wire::Checksum sum;
  sum.add(ip);
  wire::store_u16(ip, 10, sum.value());

  const std::span<std::byte> tcp = frame.subspan(kEthernet + kIpv4, tcp_size);
  wire::store_u16(tcp, 0, peer.our_port);
  wire::store_u16(tcp, 2, peer.port);
  wire::store_u32(tcp, 4, segment.sequence);
  wire::store_u32(tcp, 8, segment.acknowledgment);
  wire::store_u8(tcp, 12, static_cast<std::uint8_t>((kTcp + options) / 4 << 4));
  wire::store_u8(tcp, 13, segment.flags);
  wire::store_u16(tcp, 14, segment.window);
  wire::store_u32(tcp, 16, 0);  // checksum, urgent pointer
  if (segment.mss) {
    wire::store_u16(tcp, kTcp, 0x0204);
    wire::store_u16(tcp, kTcp + 2, *segment.mss);
  }
  std::ranges::copy(segment.payload, tcp.subspan(kTcp + options).begin());
  wire::Checksum tcp_sum = pseudo_header(frame.subspan(kIpSource, 8), tcp_size);
  tcp_sum.add(tcp);
  wire::store_u16(tcp, 16, tcp_sum.value());
  return kEthernet + kIpv4 + tcp_size;
}

}  // namespace mayfly
