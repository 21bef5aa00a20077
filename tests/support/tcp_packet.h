// TCP over IPv4 in Ethernet frames, from the standards (RFC 791, 826, 9293) and from nothing in src/: what a
// guest's side of a test is made of.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mayfly::testing {

using Octets = std::vector<std::uint8_t>;

inline std::vector<std::byte> to_bytes(const Octets& octets) {
  std::vector<std::byte> bytes;
  for (const std::uint8_t octet : octets) {
    bytes.push_back(std::byte{octet});
  }
  return bytes;
}

struct TcpPacket {
  static constexpr std::uint8_t kFin = 0x01;
  static constexpr std::uint8_t kSyn = 0x02;
  static constexpr std::uint8_t kRst = 0x04;
  static constexpr std::uint8_t kPsh = 0x08;
  static constexpr std::uint8_t kAck = 0x10;

  std::array<std::uint8_t, 6> to_mac{0x06, 0x01, 0x23, 0x45, 0x67, 0x01};
  std::array<std::uint8_t, 6> from_mac{0x06, 0x00, 0xac, 0x10, 0x00, 0x02};
  std::array<std::uint8_t, 4> from{172, 16, 0, 2};
  std::array<std::uint8_t, 4> to{169, 254, 169, 254};
  std::uint8_t ttl = 64;
  std::uint16_t fragment = 0x4000;
  std::uint8_t protocol = 6;
  Octets ip_options{};
  std::uint16_t from_port = 40000;
  std::uint16_t to_port = 80;
  std::uint32_t seq = 0;
  std::uint32_t ack = 0;
  std::uint8_t flags = 0;
  std::uint16_t window = 65535;
  Octets options{};
  std::string payload{};

  bool operator==(const TcpPacket&) const = default;

  // Bytes of sequence space.
  std::uint32_t length() const {
    return static_cast<std::uint32_t>(payload.size()) + ((flags & kSyn) != 0 ? 1U : 0U) +
           ((flags & kFin) != 0 ? 1U : 0U);
  }
  bool has(std::uint8_t flag) const { return (flags & flag) == flag; }
};

namespace packet_detail {

inline void put16(Octets& to, std::size_t value) {
  to.push_back(static_cast<std::uint8_t>(value >> 8));
  to.push_back(static_cast<std::uint8_t>(value));
}
inline void put32(Octets& to, std::uint32_t value) {
  put16(to, value >> 16);
  put16(to, value & 0xffff);
}
inline void append(Octets& to, auto const& from) {
  to.insert(to.end(), from.begin(), from.end());
}
inline unsigned get16(std::span<const std::byte> bytes, std::size_t at) {
  return std::to_integer<unsigned>(bytes[at]) * 256 + std::to_integer<unsigned>(bytes[at + 1]);
}
inline std::uint32_t get32(std::span<const std::byte> bytes, std::size_t at) {
  return get16(bytes, at) * 65536U + get16(bytes, at + 2);
}
// Ones' complement of the ones' complement sum, for an even or odd number of octets.
inline unsigned checksum(Octets octets) {
  if (octets.size() % 2 != 0) {
    octets.push_back(0);
  }
  unsigned long sum = 0;
  for (std::size_t at = 0; at < octets.size(); at += 2) {
    sum += octets[at] * 256UL + octets[at + 1];
    sum = sum % 65536 + sum / 65536;
  }
  return static_cast<unsigned>(65535 - sum);
}
inline Octets octets_of(std::span<const std::byte> bytes) {
  Octets octets;
  for (const std::byte byte : bytes) {
    octets.push_back(std::to_integer<std::uint8_t>(byte));
  }
  return octets;
}

}  // namespace packet_detail

// The frame of a packet, its checksums as they must be. Where `partial`, TCP's is left to the device.
inline std::vector<std::byte> frame_of(const TcpPacket& packet, bool partial = false) {
  using packet_detail::append, packet_detail::put16, packet_detail::put32;
  Octets tcp;
  put16(tcp, packet.from_port);
  put16(tcp, packet.to_port);
  put32(tcp, packet.seq);
  put32(tcp, packet.ack);
  tcp.push_back(static_cast<std::uint8_t>((20 + packet.options.size()) / 4 * 16));
  tcp.push_back(packet.flags);
  put16(tcp, packet.window);
  put32(tcp, 0);
  append(tcp, packet.options);
  append(tcp, packet.payload);

  Octets pseudo;
  append(pseudo, packet.from);
  append(pseudo, packet.to);
  put16(pseudo, packet.protocol);
  put16(pseudo, tcp.size());
  if (!partial) {
    append(pseudo, tcp);
  }
  const unsigned sum = packet_detail::checksum(pseudo);
  const unsigned stored = partial ? 65535 - sum : sum;
  tcp[16] = static_cast<std::uint8_t>(stored >> 8);
  tcp[17] = static_cast<std::uint8_t>(stored);

  Octets ip;
  ip.push_back(static_cast<std::uint8_t>(0x40 + (20 + packet.ip_options.size()) / 4));
  ip.push_back(0);
  put16(ip, 20 + packet.ip_options.size() + tcp.size());
  put16(ip, 0x1234);
  put16(ip, packet.fragment);
  ip.push_back(packet.ttl);
  ip.push_back(packet.protocol);
  put16(ip, 0);
  append(ip, packet.from);
  append(ip, packet.to);
  append(ip, packet.ip_options);
  const unsigned ip_sum = packet_detail::checksum(ip);
  ip[10] = static_cast<std::uint8_t>(ip_sum >> 8);
  ip[11] = static_cast<std::uint8_t>(ip_sum);

  Octets frame;
  append(frame, packet.to_mac);
  append(frame, packet.from_mac);
  put16(frame, 0x0800);
  append(frame, ip);
  append(frame, tcp);
  return to_bytes(frame);
}

// The packet in a frame, or nothing where it is none or a checksum is wrong.
inline std::optional<TcpPacket> packet_of(std::span<const std::byte> frame) {
  using packet_detail::get16, packet_detail::get32, packet_detail::octets_of;
  if (frame.size() < 54 || get16(frame, 12) != 0x0800) {
    return std::nullopt;
  }
  const Octets all = octets_of(frame);
  const auto copy = [&all](std::size_t at, auto& to) {
    std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(at), to.size(), to.begin());
  };
  TcpPacket packet;
  copy(0, packet.to_mac);
  copy(6, packet.from_mac);
  copy(26, packet.from);
  copy(30, packet.to);
  const std::size_t ip_size = (all[14] & 15U) * 4;
  const std::size_t total = get16(frame, 16);
  if (all[14] >> 4 != 4 || total != frame.size() - 14 || ip_size != 20 || all[23] != 6) {
    return std::nullopt;
  }
  packet.fragment = static_cast<std::uint16_t>(get16(frame, 20));
  packet.ttl = all[22];
  const auto tcp = frame.subspan(34);
  const std::size_t tcp_size = (all[46] >> 4) * 4U;
  if (tcp_size < 20 || tcp_size > tcp.size()) {
    return std::nullopt;
  }
  packet.from_port = static_cast<std::uint16_t>(get16(tcp, 0));
  packet.to_port = static_cast<std::uint16_t>(get16(tcp, 2));
  packet.seq = get32(tcp, 4);
  packet.ack = get32(tcp, 8);
  packet.flags = all[47];
  packet.window = static_cast<std::uint16_t>(get16(tcp, 14));
  packet.options = octets_of(tcp.subspan(20, tcp_size - 20));
  for (const std::byte byte : tcp.subspan(tcp_size)) {
    packet.payload += std::to_integer<char>(byte);
  }
  TcpPacket again = packet;
  std::vector<std::byte> expected = frame_of(again);
  // The identification is the sender's own affair; the checksum covers it.
  if (packet_detail::checksum(octets_of(frame.subspan(14, 20))) != 0 ||
      !std::equal(expected.begin() + 34, expected.end(), frame.begin() + 34, frame.end())) {
    return std::nullopt;
  }
  return packet;
}

inline Octets mss_option(unsigned mss) {
  return {2, 4, static_cast<std::uint8_t>(mss >> 8), static_cast<std::uint8_t>(mss)};
}

// Who has `target`? Tell `sender`.
inline std::vector<std::byte> arp_request(std::array<std::uint8_t, 4> sender = {172, 16, 0, 2},
                                          std::array<std::uint8_t, 4> target = {169, 254, 169, 254},
                                          std::uint8_t operation = 1) {
  using packet_detail::append;
  const TcpPacket guest;
  Octets frame(6, 0xff);
  append(frame, guest.from_mac);
  append(frame, Octets{0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation});
  append(frame, guest.from_mac);
  append(frame, sender);
  append(frame, Octets(6, 0));
  append(frame, target);
  return to_bytes(frame);
}

}  // namespace mayfly::testing
