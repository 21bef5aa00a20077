#include "base/crc64.h"

#include <array>

namespace mayfly {
namespace {

constexpr std::uint64_t kPolynomial = 0xc96c5795d7870f42;  // 0x42f0e1eba9ea3693, reflected

constexpr std::array<std::uint64_t, 256> kTable = [] {
  std::array<std::uint64_t, 256> table{};
  for (std::size_t byte = 0; byte < table.size(); ++byte) {
    std::uint64_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) {
      remainder = (remainder & 1) != 0 ? remainder >> 1 ^ kPolynomial : remainder >> 1;
    }
    table.at(byte) = remainder;
  }
  return table;
}();

}  // namespace

std::uint64_t crc64(std::span<const std::byte> bytes, std::uint64_t before) {
  std::uint64_t remainder = ~before;
  for (const std::byte byte : bytes) {
    remainder = kTable[(remainder ^ static_cast<std::uint64_t>(byte)) & 0xff] ^ remainder >> 8;
  }
  return ~remainder;
}

}  // namespace mayfly
