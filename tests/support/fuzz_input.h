// A fuzzer's input as decisions: numbers one after the other, and zeroes once it is used up.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

namespace mayfly::testing {

// What the fuzzer is there to find.
[[noreturn]] inline void broken(const char* promise) {
  std::fprintf(stderr, "a broken promise: %s\n", promise);
  std::abort();
}
inline void hold(bool held, const char* promise) {
  if (!held) {
    broken(promise);
  }
}

class FuzzInput {
 public:
  explicit FuzzInput(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }
  std::uint8_t byte() {
    if (bytes_.empty()) {
      return 0;
    }
    const std::uint8_t value = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return value;
  }
  std::uint16_t word() { return static_cast<std::uint16_t>(number(2)); }
  // Of `width` bytes, 8 at most.
  std::uint64_t number(unsigned width) {
    std::uint64_t value = 0;
    for (unsigned index = 0; index < width; ++index) {
      value |= std::uint64_t{byte()} << (8 * index);
    }
    return value;
  }
  // One in `of`, and never where the input has ended.
  bool rarely(unsigned of) { return byte() % of == of - 1; }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace mayfly::testing
