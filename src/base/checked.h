// Integer arithmetic that says when it does not fit.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>

namespace mayfly {

template <std::integral T>
constexpr std::optional<T> checked_add(T a, T b) {
  T sum{};
  return __builtin_add_overflow(a, b, &sum) ? std::nullopt : std::optional<T>(sum);
}

template <std::integral T>
constexpr std::optional<T> checked_multiply(T a, T b) {
  T product{};
  return __builtin_mul_overflow(a, b, &product) ? std::nullopt : std::optional<T>(product);
}

// The multiple of `alignment` (a power of two) at or after `value`, or nothing where that overflows.
constexpr std::optional<std::uint64_t> checked_align_up(std::uint64_t value, std::uint64_t alignment) {
  const auto sum = checked_add(value, alignment - 1);
  return sum ? std::optional<std::uint64_t>(*sum & ~(alignment - 1)) : std::nullopt;
}

}  // namespace mayfly
