#include "devices/virtio/net/net_header.h"

#include <algorithm>

namespace mayfly {

bool is_valid(const NetHeader& header, const NetOffloads& allowed, std::size_t frame) {
  const bool needs_checksum = (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
  if (needs_checksum) {
    // The sum is stored within the frame.
    const std::size_t end = std::size_t{header.csum_start} + header.csum_offset + sizeof(std::uint16_t);
    if (!allowed.checksum || end > frame) {
      return false;
    }
  }
  switch (header.gso_type) {
    case VIRTIO_NET_HDR_GSO_NONE:
      return true;
    case VIRTIO_NET_HDR_GSO_TCPV4:
      return allowed.tso4 && needs_checksum && header.gso_size != 0;
    case VIRTIO_NET_HDR_GSO_TCPV6:
      return allowed.tso6 && needs_checksum && header.gso_size != 0;
    case VIRTIO_NET_HDR_GSO_UDP:
      return allowed.ufo && needs_checksum && header.gso_size != 0;
    default:
      return false;
  }
}

WireCost wire_cost(const NetHeader& header, std::size_t frame) {
  constexpr std::size_t kIpv4 = 20;
  constexpr std::size_t kIpv6 = 40;
  constexpr std::size_t kTcp = 20;
  std::size_t headers = kEthernetHeader;  // that each segment has
  switch (header.gso_type) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
      headers += kIpv4 + kTcp;
      break;
    case VIRTIO_NET_HDR_GSO_TCPV6:
      headers += kIpv6 + kTcp;
      break;
    case VIRTIO_NET_HDR_GSO_UDP:
      headers += kIpv4;  // fragments: UDP's own header is in the first alone
      break;
    default:
      return {.segments = 1, .bytes = frame};
  }
  const std::size_t payload = frame > headers ? frame - headers : 0;
  const std::size_t segments =
      std::max<std::size_t>(1, payload / header.gso_size + (payload % header.gso_size != 0 ? 1 : 0));
  return {.segments = segments, .bytes = frame + (segments - 1) * headers};
}

bool admit_from_driver(NetHeader& header, const NetOffloads& allowed, std::size_t frame) {
  header.flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
  if (header.flags == 0) {
    header.csum_start = 0;
    header.csum_offset = 0;
  }
  if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE) {
    header.gso_size = 0;
  }
  header.hdr_len = static_cast<std::uint16_t>(std::min<std::size_t>(header.hdr_len, frame));
  header.num_buffers = 0;
  return is_valid(header, allowed, frame) && wire_cost(header, frame).segments <= kMaxFrameSegments;
}

}  // namespace mayfly
