// Guest-physical addresses and ranges of them. There is no operator+: arithmetic that can wrap says so.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>

#include "base/checked.h"

namespace mayfly {

// The unit of dirty logs and of extents, whatever the host's pages behind them: bytes.
inline constexpr std::uint64_t kGuestPage = 4096;

// A guest-physical address. Any 64-bit value is one; whether memory stands behind it is GuestMemory's to say.
class GuestAddress {
 public:
  constexpr GuestAddress() = default;
  constexpr explicit GuestAddress(std::uint64_t value) : value_(value) {}

  constexpr std::uint64_t value() const { return value_; }

  // The address `bytes` further on, or nothing where that passes the end of the address space.
  constexpr std::optional<GuestAddress> checked_add(std::uint64_t bytes) const {
    const auto sum = mayfly::checked_add(value_, bytes);
    return sum ? std::optional<GuestAddress>(*sum) : std::nullopt;
  }

  // How many bytes this address lies behind `base`, or nothing where it lies before it.
  constexpr std::optional<std::uint64_t> checked_offset_from(GuestAddress base) const {
    return value_ >= base.value_ ? std::optional<std::uint64_t>(value_ - base.value_) : std::nullopt;
  }

  constexpr bool is_aligned(std::uint64_t power_of_two) const { return (value_ & (power_of_two - 1)) == 0; }

  friend constexpr auto operator<=>(const GuestAddress&, const GuestAddress&) = default;

 private:
  std::uint64_t value_ = 0;
};

// A range of at least one byte that does not pass the end of the address space: checked when it is made.
class GuestRange {
 public:
  // Nothing where `size` is 0 or the last byte lies past 2^64 - 1.
  static constexpr std::optional<GuestRange> make(GuestAddress base, std::uint64_t size) {
    if (size == 0 || !base.checked_add(size - 1)) {
      return std::nullopt;
    }
    return GuestRange(base, size);
  }

  constexpr GuestAddress base() const { return base_; }
  constexpr std::uint64_t size() const { return size_; }  // bytes
  constexpr GuestAddress last() const {
    return GuestAddress(base_.value() + (size_ - 1));
  }  // checked in make()

  constexpr bool contains(GuestAddress address) const { return address >= base_ && address <= last(); }
  constexpr bool contains(const GuestRange& other) const {
    return other.base_ >= base_ && other.last() <= last();
  }
  constexpr bool overlaps(const GuestRange& other) const {
    return base_ <= other.last() && other.base_ <= last();
  }

  friend constexpr bool operator==(const GuestRange&, const GuestRange&) = default;

 private:
  constexpr GuestRange(GuestAddress base, std::uint64_t size) : base_(base), size_(size) {}

  GuestAddress base_;
  std::uint64_t size_;
};

}  // namespace mayfly
