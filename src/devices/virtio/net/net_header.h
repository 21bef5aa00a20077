// What precedes every frame between a driver and a network device (virtio 1.2, section 5.1.6), and what of it
// a driver may ask for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mayfly {

// Feature bits (5.1.3).
inline constexpr std::uint64_t VIRTIO_NET_F_CSUM = std::uint64_t{1} << 0;
inline constexpr std::uint64_t VIRTIO_NET_F_GUEST_CSUM = std::uint64_t{1} << 1;
inline constexpr std::uint64_t VIRTIO_NET_F_MTU = std::uint64_t{1} << 3;
inline constexpr std::uint64_t VIRTIO_NET_F_MAC = std::uint64_t{1} << 5;
inline constexpr std::uint64_t VIRTIO_NET_F_GUEST_TSO4 = std::uint64_t{1} << 7;
inline constexpr std::uint64_t VIRTIO_NET_F_GUEST_TSO6 = std::uint64_t{1} << 8;
inline constexpr std::uint64_t VIRTIO_NET_F_GUEST_UFO = std::uint64_t{1} << 10;
inline constexpr std::uint64_t VIRTIO_NET_F_HOST_TSO4 = std::uint64_t{1} << 11;
inline constexpr std::uint64_t VIRTIO_NET_F_HOST_TSO6 = std::uint64_t{1} << 12;
inline constexpr std::uint64_t VIRTIO_NET_F_HOST_UFO = std::uint64_t{1} << 14;
inline constexpr std::uint64_t VIRTIO_NET_F_MRG_RXBUF = std::uint64_t{1} << 15;
inline constexpr std::uint64_t VIRTIO_NET_F_STATUS = std::uint64_t{1} << 16;
inline constexpr std::uint64_t VIRTIO_NET_F_CTRL_VQ = std::uint64_t{1} << 17;
inline constexpr std::uint64_t VIRTIO_NET_F_MQ = std::uint64_t{1} << 22;

// Flags.
inline constexpr std::uint8_t VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
inline constexpr std::uint8_t VIRTIO_NET_HDR_F_DATA_VALID = 2;

// Values of gso_type.
inline constexpr std::uint8_t VIRTIO_NET_HDR_GSO_NONE = 0;
inline constexpr std::uint8_t VIRTIO_NET_HDR_GSO_TCPV4 = 1;
inline constexpr std::uint8_t VIRTIO_NET_HDR_GSO_UDP = 3;
inline constexpr std::uint8_t VIRTIO_NET_HDR_GSO_TCPV6 = 4;

// struct virtio_net_hdr; little-endian.
struct NetHeader {
  std::uint8_t flags = 0;
  std::uint8_t gso_type = VIRTIO_NET_HDR_GSO_NONE;
  std::uint16_t hdr_len = 0;
  std::uint16_t gso_size = 0;
  std::uint16_t csum_start = 0;
  std::uint16_t csum_offset = 0;
  std::uint16_t num_buffers = 0;

  friend bool operator==(const NetHeader&, const NetHeader&) = default;
};
static_assert(sizeof(NetHeader) == 12);

// What one side leaves to the other, in one direction. Segmentation needs the checksum (5.1.3.1).
struct NetOffloads {
  bool checksum = false;  // frames whose checksum is partial
  bool tso4 = false;      // TCP over IPv4 to be segmented
  bool tso6 = false;      // TCP over IPv6 to be segmented
  bool ufo = false;       // UDP to be fragmented

  bool any_segmentation() const { return tso4 || tso6 || ufo; }
  friend bool operator==(const NetOffloads&, const NetOffloads&) = default;
};

// Ethernet: two addresses and a type; what a VLAN tag adds.
inline constexpr std::size_t kEthernetHeader = 14;
inline constexpr std::size_t kVlanTag = 4;
// The largest IP packet in an Ethernet frame, with one VLAN tag: 5.1.6.3 has 65550, without the tag.
inline constexpr std::size_t kMaxFrame = 65535 + kEthernetHeader + kVlanTag;

// What the host makes of one frame of a driver's at most. So many segments of the largest frame have 64 bytes
// each, while a path carries 576 and more (RFC 791, section 3.1); and one frame does not keep the host busy
// for longer than a millisecond or so.
inline constexpr std::size_t kMaxFrameSegments = 1024;

// What a frame becomes on the wire: its segments, and the bytes of them all together.
struct WireCost {
  std::size_t segments = 1;
  std::size_t bytes = 0;

  friend bool operator==(const WireCost&, const WireCost&) = default;
};

// Of a frame of `frame` bytes with a header that is_valid(). It counts with the shortest headers that there
// are (no VLAN tag, no options), since the driver's own word for them is not to be trusted: a frame with
// longer ones may be counted as a segment more than it becomes, never as fewer.
WireCost wire_cost(const NetHeader& header, std::size_t frame);

// Whether `header` asks for no more than `allowed` and agrees with itself and with a frame of `frame` bytes.
bool is_valid(const NetHeader& header, const NetOffloads& allowed, std::size_t frame);

// The header of a frame that a driver sends, fit to be passed on: flags that are not known are ignored, and
// so is what no flag refers to, as 5.1.6.2.2 demands; hdr_len is a hint that the frame bounds. False where
// the rest is not is_valid(), or would become more than kMaxFrameSegments.
bool admit_from_driver(NetHeader& header, const NetOffloads& allowed, std::size_t frame);

}  // namespace mayfly
