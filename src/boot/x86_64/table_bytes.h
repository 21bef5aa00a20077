// Firmware tables being written: little-endian fields, in the order of a specification.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"

namespace mayfly::x86_64 {

class TableBytes {
 public:
  void u8(std::uint64_t value) { integer(value, 1); }
  void u16(std::uint64_t value) { integer(value, 2); }
  void u32(std::uint64_t value) { integer(value, 4); }
  void u64(std::uint64_t value) { integer(value, 8); }
  // Padded with zeros to `width`, which it must not exceed.
  void text(std::string_view ascii, std::size_t width) {
    MAYFLY_CHECK(ascii.size() <= width, "text that fits its field");
    bytes_.insert(bytes_.end(), ascii.begin(), ascii.end());
    zeros(width - ascii.size());
  }
  void zeros(std::size_t count) { bytes_.insert(bytes_.end(), count, 0); }
  void append(std::span<const std::uint8_t> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }

  // Where the next field will stand: what the table's layout promises, checked.
  void expect_offset(std::size_t offset) const {
    MAYFLY_CHECK(bytes_.size() == offset, "a field of a firmware table at its offset");
  }
  std::span<const std::uint8_t> view() const { return bytes_; }

  void set_u32(std::size_t offset, std::uint64_t value) {
    for (std::size_t i = 0; i < 4; ++i) {
      bytes_.at(offset + i) = static_cast<std::uint8_t>(value >> (8 * i));
    }
  }
  // Sets the byte at `offset`, which is 0 so far.
  void set_checksum(std::size_t offset) { bytes_.at(offset) = checksum(bytes_); }
  // What makes all bytes add up to 0.
  static std::uint8_t checksum(std::span<const std::uint8_t> bytes) {
    std::uint32_t sum = 0;
    for (const std::uint8_t byte : bytes) {
      sum += byte;
    }
    return static_cast<std::uint8_t>(0x100 - (sum & 0xff));
  }

  std::vector<std::uint8_t> take() && { return std::move(bytes_); }

 private:
  void integer(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) {
      bytes_.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
    }
  }

  std::vector<std::uint8_t> bytes_;
};

}  // namespace mayfly::x86_64
