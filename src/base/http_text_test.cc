#include "base/http_text.h"

#include <gtest/gtest.h>

#include <string>

namespace mayfly {
namespace {

TEST(HttpText, blanks_and_tabs_around_a_text_are_no_part_of_it) {
  EXPECT_EQ(trim_blanks(" \t a\tb \t"), "a\tb");
  EXPECT_EQ(trim_blanks("a"), "a");
  EXPECT_EQ(trim_blanks(" \t "), "");
  EXPECT_EQ(trim_blanks("\ra\n"), "\ra\n");
}

// Against the lists of RFC 9110: every byte there is.
TEST(HttpText, tokens_and_values_have_the_characters_of_the_standard) {
  const std::string tchars = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  for (int code = 0; code < 256; ++code) {
    const std::string text = std::string("a") + static_cast<char>(code);
    EXPECT_EQ(is_http_token(text), tchars.find(static_cast<char>(code)) != std::string::npos) << code;
    EXPECT_EQ(is_http_field_value(text), code == '\t' || (code >= ' ' && code != 0x7f)) << code;
  }
  EXPECT_FALSE(is_http_token(""));
  EXPECT_TRUE(is_http_field_value(""));
}

}  // namespace
}  // namespace mayfly
