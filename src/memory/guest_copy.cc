#include "memory/guest_copy.h"

#include <cstdint>
#include <cstring>

// The copies race with vCPUs by design, and with whatever plays a vCPU in a test; ThreadSanitizer, which has
// no notion of `volatile`, would report each of them. This file is the only place where it is told not to
// look.
#define MAYFLY_RACES_WITH_THE_GUEST __attribute__((no_sanitize("thread")))

namespace mayfly {
namespace {

// A vector and integers at any alignment. The vector is what the baseline of both architectures (SSE2,
// AdvSIMD) moves in one instruction. (Not template arguments: those lose the attributes.)
using Block [[gnu::vector_size(16), gnu::aligned(1), gnu::may_alias]] = std::uint64_t;
using Word [[gnu::aligned(1), gnu::may_alias]] = std::uint64_t;
using Half [[gnu::aligned(1), gnu::may_alias]] = std::uint32_t;
using Quarter [[gnu::aligned(1), gnu::may_alias]] = std::uint16_t;
using Byte = std::uint8_t;

// Both sides are volatile: whichever of them is the guest's is accessed once, front to back, in the largest
// units that fit. An aligned object of 2, 4 or 8 bytes is moved by one access, though nobody is promised
// that.
MAYFLY_RACES_WITH_THE_GUEST inline void move_all(volatile Byte* to, const volatile Byte* from,
                                                 std::size_t size) {
  constexpr std::size_t kStride = 4 * sizeof(Block);
  // SAFETY (of the casts here): each type may alias anything and lie anywhere; `size` keeps them within both
  // sides.
  for (; size >= kStride; size -= kStride) {
    // Four loads, then four stores: what is in flight hides the latency.
    const Block a = *reinterpret_cast<const volatile Block*>(from);
    const Block b = *reinterpret_cast<const volatile Block*>(from + 16);
    const Block c = *reinterpret_cast<const volatile Block*>(from + 32);
    const Block d = *reinterpret_cast<const volatile Block*>(from + 48);
    *reinterpret_cast<volatile Block*>(to) = a;
    *reinterpret_cast<volatile Block*>(to + 16) = b;
    *reinterpret_cast<volatile Block*>(to + 32) = c;
    *reinterpret_cast<volatile Block*>(to + 48) = d;
    to += kStride;
    from += kStride;
  }
  for (; size >= sizeof(Word); size -= sizeof(Word)) {
    *reinterpret_cast<volatile Word*>(to) = *reinterpret_cast<const volatile Word*>(from);
    to += sizeof(Word);
    from += sizeof(Word);
  }
  if ((size & sizeof(Half)) != 0) {
    *reinterpret_cast<volatile Half*>(to) = *reinterpret_cast<const volatile Half*>(from);
    to += sizeof(Half);
    from += sizeof(Half);
  }
  if ((size & sizeof(Quarter)) != 0) {
    *reinterpret_cast<volatile Quarter*>(to) = *reinterpret_cast<const volatile Quarter*>(from);
    to += sizeof(Quarter);
    from += sizeof(Quarter);
  }
  if ((size & sizeof(Byte)) != 0) {
    *to = *from;
  }
}

}  // namespace

MAYFLY_RACES_WITH_THE_GUEST void copy_from_guest(void* to, const volatile void* guest,
                                                 std::size_t size) noexcept {
  move_all(static_cast<volatile Byte*>(to), static_cast<const volatile Byte*>(guest), size);
}

MAYFLY_RACES_WITH_THE_GUEST void copy_to_guest(volatile void* guest, const void* from,
                                               std::size_t size) noexcept {
  move_all(static_cast<volatile Byte*>(guest), static_cast<const volatile Byte*>(from), size);
}

MAYFLY_RACES_WITH_THE_GUEST void fill_guest(volatile void* guest, std::byte value,
                                            std::size_t size) noexcept {
  auto* to = static_cast<volatile Byte*>(guest);
  const std::uint64_t word = std::to_integer<std::uint64_t>(value) * 0x0101010101010101ULL;
  const Block block = {word, word};
  for (; size >= sizeof(Block); size -= sizeof(Block)) {
    *reinterpret_cast<volatile Block*>(to) = block;  // SAFETY: as in move_all().
    to += sizeof(Block);
  }
  for (; size > 0; --size) {
    *to = std::to_integer<Byte>(value);
    ++to;
  }
}

MAYFLY_RACES_WITH_THE_GUEST bool is_zero_in_guest(const volatile void* guest, std::size_t size) noexcept {
  constexpr std::size_t kStride = 4 * sizeof(Block);
  const auto* from = static_cast<const volatile Byte*>(guest);
  for (; size >= kStride; size -= kStride) {
    // SAFETY: as in move_all().
    const Block a = *reinterpret_cast<const volatile Block*>(from);
    const Block b = *reinterpret_cast<const volatile Block*>(from + 16);
    const Block c = *reinterpret_cast<const volatile Block*>(from + 32);
    const Block d = *reinterpret_cast<const volatile Block*>(from + 48);
    const Block any = a | b | c | d;
    if ((any[0] | any[1]) != 0) {
      return false;
    }
    from += kStride;
  }
  return true;
}

}  // namespace mayfly
