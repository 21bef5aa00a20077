#include "mmds/token_store.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>

namespace mayfly {
namespace {

// In a time that does not depend on where the two differ.
bool equal(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0U : 1U;
  for (std::size_t index = 0; index < std::min(a.size(), b.size()); ++index) {
    difference |=
        static_cast<unsigned>(static_cast<unsigned char>(a[index]) ^ static_cast<unsigned char>(b[index]));
  }
  return difference == 0;
}

}  // namespace

Result<std::string> TokenStore::make(std::uint32_t ttl_seconds, std::uint64_t now_ns) {
  if (ttl_seconds < kMinTtlSeconds || ttl_seconds > kMaxTtlSeconds) {
    return fail(ErrorCode::kOutOfRange, "a token's time to live must be " + std::to_string(kMinTtlSeconds) +
                                            " to " + std::to_string(kMaxTtlSeconds) + " seconds");
  }
  std::array<std::uint8_t, kLength / 2> random;
  // Never in parts: it is less than 256 bytes.
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
    return fail_errno(errno, "make a random token");
  }
  Token& token = place(now_ns);
  for (std::size_t index = 0; index < random.size(); ++index) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    token.text[2 * index] = kDigits[random[index] >> 4];
    token.text[2 * index + 1] = kDigits[random[index] & 15];
  }
  token.expires_ns = now_ns + std::uint64_t{ttl_seconds} * 1'000'000'000;
  token.used_ns = now_ns;
  return std::string(token.text.data(), token.text.size());
}

TokenStore::Token& TokenStore::place(std::uint64_t now_ns) {
  std::erase_if(tokens_, [now_ns](const Token& token) { return token.expires_ns <= now_ns; });
  if (tokens_.size() < kMaxTokens) {
    return tokens_.emplace_back();
  }
  return *std::ranges::min_element(tokens_, {}, &Token::used_ns);
}

bool TokenStore::use(std::string_view token, std::uint64_t now_ns) {
  for (Token& known : tokens_) {
    if (equal(token, {known.text.data(), known.text.size()})) {
      known.used_ns = now_ns;
      return now_ns < known.expires_ns;
    }
  }
  return false;
}

}  // namespace mayfly
