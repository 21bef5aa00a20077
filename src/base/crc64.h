// The checksum of files: CRC-64/XZ (ECMA-182's polynomial, reflected, all ones before and after).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mayfly {

// Of `bytes`, or of what comes before them as well, where their checksum is given as `before`.
std::uint64_t crc64(std::span<const std::byte> bytes, std::uint64_t before = 0);

}  // namespace mayfly
