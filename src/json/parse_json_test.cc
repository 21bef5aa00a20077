#include "json/parse_json.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace mayfly {
namespace {

std::string parse_error(std::string_view text) {
  const auto parsed = parse_json(text, "body", 3);
  EXPECT_TRUE(parsed || parsed.error().code() == ErrorCode::kInvalidArgument);
  return parsed ? "" : parsed.error().message();
}

TEST(ParseJson, what_is_not_json_is_refused_with_its_place) {
  for (const auto& [text, said] : std::vector<std::pair<std::string, std::string>>{
           {"{\"a\": }", "'}' is out of place at line 1, column 7"},
           {"{\"a\": 1,\n \"b\": tru}", "'}' is out of place at line 2, column 10"},
           {"{} {}", "'{' is out of place at line 1, column 4"},
           {"{'a': 1}", "''' is out of place at line 1, column 2; texts are put into double quotes"},
           {"{\n\n\"a\": 1,}", "'}' is out of place at line 3, column 8"},
           {"{\"a\": 1", "it ends too early, at line 1, column 8"},
           {"[\n", "it ends too early, at line 2, column 1"},
           {"", "it is empty"},
           {"{\"a\": \"\xff\"}", "a byte at line 1, column 8 is not UTF-8"},
           {"\"a\nb\"", "a character that has to be escaped, or is out of place, at line 1, column 3"},
           {"\xe2\x80\x9c", "a character that has to be escaped, or is out of place, at line 1, column 1"}}) {
    EXPECT_EQ(parse_error(text), "body: not JSON: " + said) << text;
  }
  EXPECT_EQ(parse_error("[1e999]"), "body: a number is out of range");
  for (const char* text :
       {"{", "[1,]", "nul", "{\"a\":1,}", "\x80", "{\"a\":\"\xff\"}", "NaN", R"("\ud800")"}) {
    EXPECT_NE(parse_error(text), "") << text;
  }
}

TEST(ParseJson, a_key_given_twice_is_refused_by_name_at_any_depth) {
  EXPECT_EQ(parse_error(R"({"a": 1, "b": 2, "a": 3})"), "body: field \"a\" is given twice");
  EXPECT_EQ(parse_error(R"({"x": [{"k": 1, "k": 1}]})"), "body: field \"k\" is given twice");
  EXPECT_EQ(parse_error(R"({"a": {"a": 1}, "b": {"a": 1}})"), "");
}

TEST(ParseJson, deep_nesting_is_refused) {
  for (const char* text : {"[[[]]]", R"({"a": [{"b": 1}]})", "[[[1, 2]]]"}) {
    EXPECT_EQ(parse_error(text), "");
  }
  for (const std::string& text : {std::string("[[[[]]]]"), std::string(R"([{"a": [{}]}])"),
                                  std::string(10000, '[') + std::string(10000, ']')}) {
    EXPECT_EQ(parse_error(text), "body: nested more than 3 levels deep");
  }
}

}  // namespace
}  // namespace mayfly
