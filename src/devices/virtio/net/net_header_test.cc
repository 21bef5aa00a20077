#include "devices/virtio/net/net_header.h"

#include <gtest/gtest.h>

#include <array>

namespace mayfly {
namespace {

constexpr NetOffloads kAll{.checksum = true, .tso4 = true, .tso6 = true, .ufo = true};

NetHeader segmented(std::uint8_t type) {
  return {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
          .gso_type = type,
          .hdr_len = 54,
          .gso_size = 1448,
          .csum_start = 34,
          .csum_offset = 16};
}

TEST(NetHeader, plain_frame_is_always_valid) {
  EXPECT_TRUE(is_valid({}, {}, 60));
}

TEST(NetHeader, checksum_not_negotiated_is_refused) {
  EXPECT_FALSE(is_valid({.flags = 1, .csum_start = 34, .csum_offset = 16}, {}, 60));
  EXPECT_TRUE(is_valid({.flags = 1, .csum_start = 34, .csum_offset = 16}, {.checksum = true}, 60));
}

TEST(NetHeader, checksum_must_lie_within_the_frame) {
  EXPECT_TRUE(is_valid({.flags = 1, .csum_start = 34, .csum_offset = 16}, kAll, 52));
  EXPECT_FALSE(is_valid({.flags = 1, .csum_start = 34, .csum_offset = 16}, kAll, 51));
  EXPECT_FALSE(is_valid({.flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff}, kAll, 65549));
}

TEST(NetHeader, each_segmentation_needs_its_own_offload) {
  EXPECT_TRUE(is_valid(segmented(VIRTIO_NET_HDR_GSO_TCPV4), {.checksum = true, .tso4 = true}, 3000));
  EXPECT_FALSE(
      is_valid(segmented(VIRTIO_NET_HDR_GSO_TCPV4), {.checksum = true, .tso6 = true, .ufo = true}, 3000));
  EXPECT_TRUE(is_valid(segmented(VIRTIO_NET_HDR_GSO_TCPV6), {.checksum = true, .tso6 = true}, 3000));
  EXPECT_FALSE(
      is_valid(segmented(VIRTIO_NET_HDR_GSO_TCPV6), {.checksum = true, .tso4 = true, .ufo = true}, 3000));
  EXPECT_TRUE(is_valid(segmented(VIRTIO_NET_HDR_GSO_UDP), {.checksum = true, .ufo = true}, 3000));
  EXPECT_FALSE(
      is_valid(segmented(VIRTIO_NET_HDR_GSO_UDP), {.checksum = true, .tso4 = true, .tso6 = true}, 3000));
}

TEST(NetHeader, segmentation_without_checksum_or_size_is_refused) {
  NetHeader header = segmented(VIRTIO_NET_HDR_GSO_TCPV4);
  header.flags = 0;
  EXPECT_FALSE(is_valid(header, kAll, 3000));
  header = segmented(VIRTIO_NET_HDR_GSO_TCPV4);
  header.gso_size = 0;
  EXPECT_FALSE(is_valid(header, kAll, 3000));
}

TEST(NetHeader, unknown_segmentation_is_refused) {
  for (const std::uint8_t type : std::array<std::uint8_t, 6>{2, 5, 6, 0x80, 0x81, 0xff}) {
    EXPECT_FALSE(is_valid(segmented(type), kAll, 3000)) << int{type};
  }
}

TEST(NetHeader, of_a_driver_unknown_flags_are_ignored) {
  NetHeader header{
      .flags = 0xfe, .hdr_len = 9000, .gso_size = 7, .csum_start = 60000, .csum_offset = 9, .num_buffers = 5};
  EXPECT_TRUE(admit_from_driver(header, kAll, 60));
  EXPECT_EQ(header, (NetHeader{.hdr_len = 60}));
}

TEST(NetHeader, of_a_driver_header_length_is_at_most_the_frame) {
  NetHeader header = segmented(VIRTIO_NET_HDR_GSO_TCPV4);
  header.hdr_len = 0xffff;
  EXPECT_TRUE(admit_from_driver(header, kAll, 3000));
  EXPECT_EQ(header.hdr_len, 3000);
}

TEST(NetHeader, of_a_driver_frame_of_too_many_segments_is_refused) {
  const std::size_t headers = 14 + 20 + 20;
  NetHeader header = segmented(VIRTIO_NET_HDR_GSO_TCPV4);
  header.gso_size = 1;
  EXPECT_TRUE(admit_from_driver(header, kAll, headers + kMaxFrameSegments));
  EXPECT_FALSE(admit_from_driver(header, kAll, headers + kMaxFrameSegments + 1));
  EXPECT_FALSE(admit_from_driver(header, kAll, 65000));
  // Whatever the driver says of its headers.
  header.hdr_len = 64990;
  header.csum_start = 64980;
  EXPECT_FALSE(admit_from_driver(header, kAll, 65000));
  for (const std::uint8_t type :
       {VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP}) {
    header = segmented(type);
    header.gso_size = 65;
    EXPECT_TRUE(admit_from_driver(header, kAll, kMaxFrame)) << int{type};
    header.gso_size = 63;
    EXPECT_FALSE(admit_from_driver(header, kAll, kMaxFrame)) << int{type};
    // Towards a driver it is the host's affair.
    EXPECT_TRUE(is_valid(header, kAll, kMaxFrame)) << int{type};
  }
}

TEST(NetHeader, frame_costs_what_it_becomes) {
  EXPECT_EQ(wire_cost({}, 1514), (WireCost{1, 1514}));
  const NetHeader tcp4 = segmented(VIRTIO_NET_HDR_GSO_TCPV4);
  EXPECT_EQ(wire_cost(tcp4, 54), (WireCost{1, 54}));
  EXPECT_EQ(wire_cost(tcp4, 20), (WireCost{1, 20}));
  EXPECT_EQ(wire_cost(tcp4, 54 + 1448), (WireCost{1, 54 + 1448}));
  EXPECT_EQ(wire_cost(tcp4, 54 + 1449), (WireCost{2, 54 + 1449 + 54}));
  EXPECT_EQ(wire_cost(tcp4, 54 + 45 * 1448), (WireCost{45, 45 * (54 + 1448)}));
  EXPECT_EQ(wire_cost(segmented(VIRTIO_NET_HDR_GSO_TCPV6), 74 + 2 * 1448), (WireCost{2, 2 * (74 + 1448)}));
  EXPECT_EQ(wire_cost(segmented(VIRTIO_NET_HDR_GSO_UDP), 34 + 2 * 1448), (WireCost{2, 2 * (34 + 1448)}));
}

}  // namespace
}  // namespace mayfly
