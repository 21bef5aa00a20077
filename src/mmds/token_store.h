// Session tokens of the metadata service, version 2.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mayfly {

// Tokens are 128 random bits in hexadecimal. A guest can ask for as many as it likes: at most kMaxTokens are
// remembered, and one more takes the place of one that has expired, or else of the one whose last use is the
// longest ago. Times are those of a monotonic clock, in nanoseconds. Not thread-safe.
class TokenStore {
 public:
  static constexpr std::size_t kMaxTokens = 256;
  static constexpr std::uint32_t kMinTtlSeconds = 1;
  static constexpr std::uint32_t kMaxTtlSeconds = 21'600;

  // A new token. kOutOfRange where `ttl_seconds` is not within the limits above; what getrandom(2) reports.
  Result<std::string> make(std::uint32_t ttl_seconds, std::uint64_t now_ns);

  // Whether `token` was made here and has not expired; counts as a use of it.
  bool use(std::string_view token, std::uint64_t now_ns);

  std::size_t size() const { return tokens_.size(); }

 private:
  static constexpr std::size_t kLength = 32;

  struct Token {
    std::array<char, kLength> text;
    std::uint64_t expires_ns;
    std::uint64_t used_ns;
  };

  Token& place(std::uint64_t now_ns);

  std::vector<Token> tokens_;
};

}  // namespace mayfly
