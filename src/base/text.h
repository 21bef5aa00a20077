// Text to numbers and back, strictly; names that callers give.
#pragma once

#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

#include "base/result.h"

namespace mayfly {

// Text of bounded length in storage of the caller's. Allocates nothing and never fails: what does not fit is
// left out, and truncated() tells. Async-signal-safe.
class TextBuffer {
 public:
  explicit TextBuffer(std::span<char> storage) : storage_(storage) {}

  std::string_view view() const { return {storage_.data(), size_}; }
  std::size_t room() const { return storage_.size() - size_; }
  bool truncated() const { return truncated_; }

  void append(char character);
  void append(std::string_view text);
  // `width`: padded with zeros to at least so many digits.
  void append_decimal(std::uint64_t value, unsigned width = 1);
  void append_hex(std::uint64_t value, unsigned width = 1);
  // `text` with everything but printable ASCII replaced by escapes (\n, \r, \t, \xNN), so that a string from
  // elsewhere can neither start a line nor reach a terminal's interpreter.
  void append_escaped(std::string_view text);
  // As a JSON string with its quotes, in printable ASCII: all else is escaped, as text can also do things to
  // a terminal by what is valid UTF-8 (C1 controls, a change of the writing's direction). Bytes that are no
  // UTF-8 become U+FFFD. At most six times as long, and the quotes.
  void append_json_string(std::string_view text);
  // "2024-02-29T23:59:59.000000001" in UTC. Not by gmtime_r(), which may read the time zone's file and takes
  // a lock.
  void append_utc_time(std::uint64_t realtime_ns);

 private:
  std::span<char> storage_;
  std::size_t size_ = 0;
  bool truncated_ = false;
};

// A to Z are a to z; no other character has a case here, whatever the locale.
char ascii_lower(char character);
bool equal_ignoring_case(std::string_view a, std::string_view b);

// "0x1f".
std::string hex(std::uint64_t value);

// The whole of `text` as a decimal number, or after "0x" as a hexadecimal one; no spaces, no plus sign, no
// other text, nothing that does not fit a T.
template <std::integral T>
std::optional<T> parse_integer(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
    if (text.starts_with('-')) {
      return std::nullopt;
    }
  }
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, base);
  return error == std::errc() && stop == end ? std::optional<T>(value) : std::nullopt;
}

// A size of memory in bytes: "512M", "2G", "1T", "64K" (powers of 1024, either case); a number alone is in
// MiB, as in the control API. `what` names the input in the error (kInvalidArgument, kOutOfRange beyond 64
// bits).
Result<std::uint64_t> parse_memory_size(std::string_view text, std::string_view what);

// The longest of the names below.
inline constexpr std::size_t kMaxIdLength = 64;
// A microVM's name: 1 to 64 of A-Z a-z 0-9 and '-'.
bool is_instance_id(std::string_view id);
// A drive's or an interface's name, as it appears in a path of the control API: 1 to 64 of A-Z a-z 0-9 and
// '_'.
bool is_resource_id(std::string_view id);

}  // namespace mayfly
