// Numbers and checksums as they lie in packets: the most significant byte first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mayfly::wire {

inline std::uint8_t load_u8(std::span<const std::byte> bytes, std::size_t offset) {
  return static_cast<std::uint8_t>(bytes[offset]);
}
inline std::uint16_t load_u16(std::span<const std::byte> bytes, std::size_t offset) {
  return static_cast<std::uint16_t>(load_u8(bytes, offset) << 8 | load_u8(bytes, offset + 1));
}
inline std::uint32_t load_u32(std::span<const std::byte> bytes, std::size_t offset) {
  return std::uint32_t{load_u16(bytes, offset)} << 16 | load_u16(bytes, offset + 2);
}

inline void store_u8(std::span<std::byte> bytes, std::size_t offset, std::uint8_t value) {
  bytes[offset] = std::byte{value};
}
inline void store_u16(std::span<std::byte> bytes, std::size_t offset, std::uint16_t value) {
  store_u8(bytes, offset, static_cast<std::uint8_t>(value >> 8));
  store_u8(bytes, offset + 1, static_cast<std::uint8_t>(value));
}
inline void store_u32(std::span<std::byte> bytes, std::size_t offset, std::uint32_t value) {
  store_u16(bytes, offset, static_cast<std::uint16_t>(value >> 16));
  store_u16(bytes, offset + 2, static_cast<std::uint16_t>(value));
}

// The Internet's checksum (RFC 1071). Of what add() is given, only the last may have an odd number of bytes.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes) {
    for (std::size_t offset = 0; offset + 1 < bytes.size(); offset += 2) {
      sum_ += load_u16(bytes, offset);
    }
    if (bytes.size() % 2 != 0) {
      sum_ += static_cast<std::uint64_t>(load_u8(bytes, bytes.size() - 1)) << 8;
    }
  }
  void add(std::uint64_t number) { sum_ += number; }

  // What to store. Over bytes with the right checksum in them: 0.
  std::uint16_t value() const {
    std::uint64_t sum = sum_;
    while (sum >> 16 != 0) {
      sum = (sum & 0xffff) + (sum >> 16);
    }
    return static_cast<std::uint16_t>(~sum);
  }

 private:
  std::uint64_t sum_ = 0;
};

}  // namespace mayfly::wire
