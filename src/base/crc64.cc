#include "base/crc64.h"

#include <array>
#include <bit>
#include <cstring>

namespace mayfly {
namespace {

constexpr std::uint64_t kPolynomial = 0xc96c5795d7870f42;  // 0x42f0e1eba9ea3693, reflected

// Of each byte, with so many bytes of zeros behind it ("slicing by 8": Kounavis and Berry, 2005).
constexpr std::array<std::array<std::uint64_t, 256>, 8> kTables = [] {
  std::array<std::array<std::uint64_t, 256>, 8> tables{};
  for (std::size_t byte = 0; byte < 256; ++byte) {
    std::uint64_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) {
      remainder = (remainder & 1) != 0 ? remainder >> 1 ^ kPolynomial : remainder >> 1;
    }
    tables[0][byte] = remainder;
  }
  for (std::size_t zeros = 1; zeros < tables.size(); ++zeros) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint64_t before = tables[zeros - 1][byte];
      tables[zeros][byte] = tables[0][before & 0xff] ^ before >> 8;
    }
  }
  return tables;
}();

static_assert(std::endian::native == std::endian::little);

}  // namespace

std::uint64_t crc64(std::span<const std::byte> bytes, std::uint64_t before) {
  std::uint64_t remainder = ~before;
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), sizeof(word));
    word ^= remainder;
    remainder = 0;
    for (std::size_t byte = 0; byte < 8; ++byte) {
      remainder ^= kTables[7 - byte][word >> (8 * byte) & 0xff];
    }
  }
  for (const std::byte byte : bytes) {
    remainder = kTables[0][(remainder ^ static_cast<std::uint64_t>(byte)) & 0xff] ^ remainder >> 8;
  }
  return ~remainder;
}

}  // namespace mayfly
