#include "base/text.h"

#include <gtest/gtest.h>
#include <time.h>

#include <array>
#include <cstdio>
#include <limits>

namespace mayfly {
namespace {

constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

template <typename Fill>
std::string filled(Fill fill) {
  std::array<char, 4096> storage{};
  TextBuffer text(storage);
  fill(text);
  EXPECT_FALSE(text.truncated());
  return std::string(text.view());
}

std::string escaped(std::string_view input) {
  return filled([&](TextBuffer& text) { text.append_escaped(input); });
}
std::string json(std::string_view input) {
  return filled([&](TextBuffer& text) { text.append_json_string(input); });
}

TEST(Text, only_ascii_letters_have_a_case) {
  EXPECT_TRUE(equal_ignoring_case("Content-LENGTH", "content-length"));
  EXPECT_FALSE(equal_ignoring_case("content-length", "content-lengt"));
  EXPECT_FALSE(equal_ignoring_case("@[`{", "`{@["));
  EXPECT_FALSE(equal_ignoring_case("\xc4", "\xe4"));  // a letter and its small one in Latin-1
}

TEST(TextBuffer, what_does_not_fit_is_left_out_and_told) {
  std::array<char, 4> storage{};
  TextBuffer text(storage);
  text.append("abc");
  text.append('d');
  EXPECT_FALSE(text.truncated());
  text.append("");
  EXPECT_FALSE(text.truncated());
  text.append_decimal(7);
  EXPECT_TRUE(text.truncated());
  EXPECT_EQ(text.view(), "abcd");
  EXPECT_EQ(text.room(), 0U);
}

TEST(TextBuffer, numbers_have_all_their_digits_and_the_asked_width) {
  EXPECT_EQ(filled([](TextBuffer& t) { t.append_decimal(0); }), "0");
  EXPECT_EQ(filled([](TextBuffer& t) { t.append_decimal(kMax); }), "18446744073709551615");
  EXPECT_EQ(filled([](TextBuffer& t) { t.append_decimal(7, 3); }), "007");
  EXPECT_EQ(filled([](TextBuffer& t) { t.append_decimal(7, 100); }), "00000000000000000007");
  EXPECT_EQ(filled([](TextBuffer& t) { t.append_hex(kMax); }), "ffffffffffffffff");
  EXPECT_EQ(filled([](TextBuffer& t) { t.append_hex(0xa, 2); }), "0a");
}

TEST(TextBuffer, escaping_leaves_only_printable_ascii) {
  EXPECT_EQ(escaped("plain text: ~"), "plain text: ~");
  EXPECT_EQ(escaped("a\nb\rc\td"), "a\\nb\\rc\\td");
  EXPECT_EQ(escaped(std::string_view("\0\x1b[2J\x7f\x9b", 7)), "\\x00\\x1b[2J\\x7f\\x9b");
  for (int byte = 0; byte < 256; ++byte) {
    for (const char c : escaped(std::string(1, static_cast<char>(byte)))) {
      EXPECT_TRUE(c >= ' ' && c <= '~');
    }
  }
}

TEST(TextBuffer, json_strings_escape_what_json_requires) {
  EXPECT_EQ(json("a\"b\\c\nd"), "\"a\\\"b\\\\c\\u000ad\"");
}

TEST(TextBuffer, json_strings_are_printable_ascii) {
  EXPECT_EQ(json("\xc3\xa4 \xe2\x82\xac \xf0\x9f\xa6\x9f"), R"("\u00e4 \u20ac \ud83e\udd9f")");
  EXPECT_EQ(json("\x7f\xc2\x80\xe2\x80\xae\xe2\x81\xa6"), R"("\u007f\u0080\u202e\u2066")");
  EXPECT_EQ(json("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"), R"("\ud800\udc00\udbff\udfff")");
}

TEST(TextBuffer, json_strings_replace_malformed_utf8) {
  EXPECT_EQ(json("\xff"), "\"\\ufffd\"");
  EXPECT_EQ(json("\xc3"), "\"\\ufffd\"");                                   // cut off
  EXPECT_EQ(json("\xc0\xaf"), "\"\\ufffd\\ufffd\"");                        // overlong
  EXPECT_EQ(json("\xe0\x80\xaf"), "\"\\ufffd\\ufffd\\ufffd\"");             // overlong
  EXPECT_EQ(json("\xed\xa0\x80"), "\"\\ufffd\\ufffd\\ufffd\"");             // a surrogate
  EXPECT_EQ(json("\xf4\x90\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");  // beyond U+10FFFF
}

TEST(TextBuffer, utc_time_agrees_with_the_c_library_over_the_centuries) {
  // A prime number of seconds apart, so that every time of day and every date is met.
  for (std::uint64_t seconds = 0; seconds < 18'000'000'000U; seconds += 9'000'011U) {
    const auto when = static_cast<time_t>(seconds);
    tm parts{};
    ASSERT_NE(::gmtime_r(&when, &parts), nullptr);
    std::array<char, 64> expected{};
    std::snprintf(expected.data(), expected.size(), "%04d-%02d-%02dT%02d:%02d:%02d.000000042",
                  parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min,
                  parts.tm_sec);
    ASSERT_EQ(filled([&](TextBuffer& t) { t.append_utc_time(seconds * 1'000'000'000U + 42); }),
              expected.data());
  }
}

TEST(TextBuffer, utc_time_knows_leap_days) {
  EXPECT_EQ(filled([](TextBuffer& t) { t.append_utc_time(951'782'400'123'456'789U); }),
            "2000-02-29T00:00:00.123456789");
  EXPECT_EQ(filled([](TextBuffer& t) { t.append_utc_time(4'107'542'400'000'000'000U); }),
            "2100-03-01T00:00:00.000000000");
}

TEST(Text, hex_has_a_prefix_and_no_padding) {
  EXPECT_EQ(hex(0), "0x0");
  EXPECT_EQ(hex(kMax), "0xffffffffffffffff");
}

TEST(Text, integers_are_parsed_whole_or_not_at_all) {
  EXPECT_EQ(parse_integer<std::uint8_t>("255"), std::uint8_t{255});
  EXPECT_EQ(parse_integer<std::uint64_t>("0xfFfFfFfFfFfFfFfF"), kMax);
  EXPECT_EQ(parse_integer<int>("-12"), -12);
  for (const char* bad : {"", " 1", "1 ", "+1", "1x", "256", "-1", "0x", "0x-1", "0x100", "1.0", "\n1"}) {
    EXPECT_FALSE(parse_integer<std::uint8_t>(bad)) << bad;
  }
  EXPECT_FALSE(parse_integer<int>("0x-1"));
}

TEST(Text, memory_sizes_are_in_mebibytes_unless_they_say_otherwise) {
  EXPECT_EQ(parse_memory_size("128", "memory").value(), 128ULL << 20);
  EXPECT_EQ(parse_memory_size("64K", "memory").value(), 64ULL << 10);
  EXPECT_EQ(parse_memory_size("512M", "memory").value(), 512ULL << 20);
  EXPECT_EQ(parse_memory_size("2g", "memory").value(), 2ULL << 30);
  EXPECT_EQ(parse_memory_size("1T", "memory").value(), 1ULL << 40);
}

TEST(Text, a_memory_size_that_is_none_is_refused_by_name) {
  for (const char* bad : {"", "M", "-1", "1.5G", "1MB", "0x10", " 1", "1 M", "x"}) {
    const auto size = parse_memory_size(bad, "--memory");
    ASSERT_FALSE(size.has_value()) << bad;
    EXPECT_EQ(size.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(size.error().message().find("--memory"), std::string::npos);
  }
  for (const char* large : {"18446744073709551616K", "17592186044416", "16777216T", "99999999999999999999"}) {
    EXPECT_EQ(parse_memory_size(large, "--memory").error().code(), ErrorCode::kOutOfRange) << large;
  }
  EXPECT_TRUE(parse_memory_size("16777215T", "--memory").has_value());
}

TEST(Text, ids_allow_their_own_characters_and_lengths_only) {
  EXPECT_TRUE(is_instance_id("a-Z-09"));
  EXPECT_TRUE(is_resource_id("a_Z_09"));
  EXPECT_TRUE(is_instance_id(std::string(64, 'a')));
  EXPECT_TRUE(is_resource_id(std::string(64, 'a')));
  for (const std::string& bad : {std::string(), std::string(65, 'a'), std::string("a b"), std::string("a/b"),
                                 std::string("a\0b", 3), std::string("\xc3\xa4"), std::string("..")}) {
    EXPECT_FALSE(is_instance_id(bad)) << bad;
    EXPECT_FALSE(is_resource_id(bad)) << bad;
  }
  EXPECT_FALSE(is_instance_id("a_b"));
  EXPECT_FALSE(is_resource_id("a-b"));
}

}  // namespace
}  // namespace mayfly
