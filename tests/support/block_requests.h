// What a driver's requests to a block device are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mayfly::testing {

// 5.2.6, as the driver writes them.
namespace blk {
inline constexpr std::uint32_t VIRTIO_BLK_T_IN = 0;
inline constexpr std::uint32_t VIRTIO_BLK_T_OUT = 1;
inline constexpr std::uint32_t VIRTIO_BLK_T_FLUSH = 4;
inline constexpr std::uint32_t VIRTIO_BLK_T_GET_ID = 8;
inline constexpr std::uint32_t VIRTIO_BLK_T_DISCARD = 11;
inline constexpr std::uint32_t VIRTIO_BLK_T_WRITE_ZEROES = 13;
inline constexpr std::uint8_t VIRTIO_BLK_S_OK = 0;
inline constexpr std::uint8_t VIRTIO_BLK_S_IOERR = 1;
inline constexpr std::uint8_t VIRTIO_BLK_S_UNSUPP = 2;

inline void put_le(std::vector<std::byte>& to, std::uint64_t value, unsigned width) {
  for (unsigned index = 0; index < width; ++index) {
    to.push_back(static_cast<std::byte>(value >> (8 * index)));
  }
}
inline std::vector<std::byte> header(std::uint32_t type, std::uint64_t sector) {
  std::vector<std::byte> bytes;
  put_le(bytes, type, 4);
  put_le(bytes, 0, 4);
  put_le(bytes, sector, 8);
  return bytes;
}
inline std::vector<std::byte> segment(std::uint64_t sector, std::uint32_t sectors, std::uint32_t flags = 0) {
  std::vector<std::byte> bytes;
  put_le(bytes, sector, 8);
  put_le(bytes, sectors, 4);
  put_le(bytes, flags, 4);
  return bytes;
}
inline std::vector<std::byte> filled(std::size_t size, unsigned value) {
  return std::vector<std::byte>(size, static_cast<std::byte>(value));
}
inline std::vector<std::byte> operator+(std::vector<std::byte> left, const std::vector<std::byte>& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}
}  // namespace blk

}  // namespace mayfly::testing
