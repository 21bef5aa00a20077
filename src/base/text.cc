#include "base/text.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/checked.h"

namespace mayfly {
namespace {

constexpr std::string_view kHexDigits = "0123456789abcdef";

bool is_alphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool is_id(std::string_view id, char extra) {
  return !id.empty() && id.size() <= kMaxIdLength &&
         std::all_of(id.begin(), id.end(), [extra](char c) { return is_alphanumeric(c) || c == extra; });
}

// The length of the well-formed UTF-8 sequence that `text` starts with (Unicode 15, table 3-7), or 0.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : static_cast<unsigned char>(0);
  };
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xc0U) == 0x80U; };
  const unsigned first = byte(0);
  if (first < 0x80U) {
    return 1;
  }
  if (first >= 0xc2U && first <= 0xdfU) {
    return continues(1) ? 2 : 0;
  }
  if (first >= 0xe0U && first <= 0xefU) {
    // No overlong forms, no surrogates.
    const bool second_fits = !(first == 0xe0U && byte(1) < 0xa0U) && !(first == 0xedU && byte(1) > 0x9fU);
    return continues(1) && continues(2) && second_fits ? 3 : 0;
  }
  if (first >= 0xf0U && first <= 0xf4U) {
    const bool second_fits = !(first == 0xf0U && byte(1) < 0x90U) && !(first == 0xf4U && byte(1) > 0x8fU);
    return continues(1) && continues(2) && continues(3) && second_fits ? 4 : 0;
  }
  return 0;
}

// Of a well-formed sequence of two to four bytes.
std::uint32_t code_point(std::string_view sequence) {
  // The first byte has as many leading ones as there are bytes, the others two bits that say what they are.
  std::uint32_t value = static_cast<unsigned char>(sequence.front()) & (0x7fU >> sequence.size());
  for (const char c : sequence.substr(1)) {
    value = value << 6U | (static_cast<unsigned char>(c) & 0x3fU);
  }
  return value;
}

// As JSON has it (RFC 8259, section 7): "\uNNNN", or two of them for what does not fit.
void append_utf16_escapes(TextBuffer& text, std::uint32_t code_point) {
  constexpr std::uint32_t kFirstOfPairs = 0x10000;
  if (code_point >= kFirstOfPairs) {
    const std::uint32_t bits = code_point - kFirstOfPairs;
    text.append("\\u");
    text.append_hex(0xd800U + (bits >> 10U), 4);
    code_point = 0xdc00U + (bits & 0x3ffU);
  }
  text.append("\\u");
  text.append_hex(code_point, 4);
}

struct CivilDate {
  std::uint64_t year;
  unsigned month;
  unsigned day;
};

constexpr bool is_leap(std::uint64_t year) {
  return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

// 400 Gregorian years are 146097 days; within them the loops below take at most 400 + 12 steps.
CivilDate date_of(std::uint64_t days_since_1970) {
  constexpr std::array<unsigned, 12> kMonthDays{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  CivilDate date{1970 + days_since_1970 / 146097 * 400, 1, 1};
  std::uint64_t days = days_since_1970 % 146097;
  for (std::uint64_t length = is_leap(date.year) ? 366 : 365; days >= length;
       length = is_leap(date.year) ? 366 : 365) {
    days -= length;
    ++date.year;
  }
  for (const unsigned usual : kMonthDays) {
    const unsigned length = usual + (date.month == 2 && is_leap(date.year) ? 1U : 0U);
    if (days < length) {
      break;
    }
    days -= length;
    ++date.month;
  }
  date.day += static_cast<unsigned>(days);
  return date;
}

}  // namespace

void TextBuffer::append(char character) {
  append(std::string_view(&character, 1));
}

void TextBuffer::append(std::string_view text) {
  const std::size_t count = std::min(text.size(), room());
  if (count > 0) {
    std::memcpy(storage_.data() + size_, text.data(), count);
  }
  size_ += count;
  truncated_ = truncated_ || count < text.size();
}

void TextBuffer::append_decimal(std::uint64_t value, unsigned width) {
  std::array<char, 20> digits{};
  std::size_t first = digits.size();
  while (value > 0 || (digits.size() - first < width && first > 0)) {
    digits[--first] = static_cast<char>('0' + value % 10);
    value /= 10;
  }
  append(std::string_view(digits.data() + first, digits.size() - first));
}

void TextBuffer::append_hex(std::uint64_t value, unsigned width) {
  std::array<char, 16> digits{};
  std::size_t first = digits.size();
  while (value > 0 || (digits.size() - first < width && first > 0)) {
    digits[--first] = kHexDigits[value % 16];
    value /= 16;
  }
  append(std::string_view(digits.data() + first, digits.size() - first));
}

void TextBuffer::append_escaped(std::string_view text) {
  for (const char c : text) {
    if (c >= ' ' && c <= '~') {
      append(c);
    } else if (c == '\n') {
      append("\\n");
    } else if (c == '\r') {
      append("\\r");
    } else if (c == '\t') {
      append("\\t");
    } else {
      append("\\x");
      append_hex(static_cast<unsigned char>(c), 2);
    }
  }
}

void TextBuffer::append_json_string(std::string_view text) {
  append('"');
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const char c = text.front();
    if (length == 0) {
      append("\\ufffd");
    } else if (length > 1) {
      append_utf16_escapes(*this, code_point(text.substr(0, length)));
    } else if (c == '"' || c == '\\') {
      append('\\');
      append(c);
    } else if (c < ' ' || c == '\x7f') {
      append("\\u");
      append_hex(static_cast<unsigned char>(c), 4);
    } else {
      append(c);
    }
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  append('"');
}

void TextBuffer::append_utc_time(std::uint64_t realtime_ns) {
  constexpr std::uint64_t kPerSecond = 1'000'000'000;
  const std::uint64_t seconds = realtime_ns / kPerSecond;
  const CivilDate date = date_of(seconds / 86400);
  append_decimal(date.year, 4);
  append('-');
  append_decimal(date.month, 2);
  append('-');
  append_decimal(date.day, 2);
  append('T');
  append_decimal(seconds / 3600 % 24, 2);
  append(':');
  append_decimal(seconds / 60 % 60, 2);
  append(':');
  append_decimal(seconds % 60, 2);
  append('.');
  append_decimal(realtime_ns % kPerSecond, 9);
}

char ascii_lower(char character) {
  return character >= 'A' && character <= 'Z' ? static_cast<char>(character - 'A' + 'a') : character;
}

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, {}, ascii_lower, ascii_lower);
}

std::string hex(std::uint64_t value) {
  std::array<char, 18> storage{};
  TextBuffer text(storage);
  text.append("0x");
  text.append_hex(value);
  return std::string(text.view());
}

Result<std::uint64_t> parse_memory_size(std::string_view text, std::string_view what) {
  const std::string named = std::string(what).append(" \"").append(text).append("\"");
  std::uint64_t unit = 1ULL << 20;
  std::string_view number = text;
  if (!number.empty()) {
    constexpr std::string_view kUnits = "KMGT";
    const char last = number.back();
    const std::size_t found =
        kUnits.find(last >= 'a' && last <= 'z' ? static_cast<char>(last - 'a' + 'A') : last);
    if (found != std::string_view::npos) {
      unit = 1ULL << (10 * (found + 1));
      number.remove_suffix(1);
    }
  }
  const bool digits_only =
      !number.empty() && number.find_first_not_of("0123456789") == std::string_view::npos;
  if (!digits_only) {
    return fail(ErrorCode::kInvalidArgument, named + ": not a size such as 128 (MiB), 512M or 2G");
  }
  const auto count = parse_integer<std::uint64_t>(number);
  const auto bytes = count ? checked_multiply(*count, unit) : std::nullopt;
  if (!bytes) {
    return fail(ErrorCode::kOutOfRange, named + ": too large");
  }
  return *bytes;
}

bool is_instance_id(std::string_view id) {
  return is_id(id, '-');
}

bool is_resource_id(std::string_view id) {
  return is_id(id, '_');
}

}  // namespace mayfly
