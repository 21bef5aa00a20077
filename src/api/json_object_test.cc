#include "api/json_object.h"

#include <gtest/gtest.h>

#include <array>
#include <string>

namespace mayfly::api {
namespace {

struct Read {
  std::optional<std::string> name;
  std::optional<bool> flag;
  std::optional<std::uint64_t> count;
  std::string error;
};

Read read(std::string_view text) {
  const auto value = parse_json(text, "body");
  JsonObject object(value.value(), "thing");
  Read result;
  object.require("name");
  result.name = object.string("name");
  result.flag = object.boolean("flag");
  result.count = object.integer("count", 1, 10);
  const auto done = object.finish();
  result.error = done ? "" : done.error().message();
  return result;
}

TEST(JsonObject, fields_are_read_by_type_and_null_is_absent) {
  const Read all = read(R"({"name": "n", "flag": true, "count": 10})");
  EXPECT_EQ(all.error, "");
  EXPECT_EQ(all.name, "n");
  EXPECT_EQ(all.flag, true);
  EXPECT_EQ(all.count, 10U);
  const Read few = read(R"({"name": "n", "flag": null})");
  EXPECT_EQ(few.error, "");
  EXPECT_FALSE(few.flag.has_value());
  EXPECT_FALSE(few.count.has_value());
}

TEST(JsonObject, each_refusal_names_the_object_the_field_and_the_cause) {
  EXPECT_EQ(read("{}").error, "thing: field \"name\" is missing");
  EXPECT_EQ(read(R"({"name": null})").error, "thing: field \"name\" is missing");
  EXPECT_EQ(read(R"({"name": 1})").error, "thing: field \"name\": must be a string, is number");
  EXPECT_EQ(read(R"({"name": "n", "flag": "true"})").error,
            "thing: field \"flag\": must be true or false, is string");
  EXPECT_EQ(read(R"({"name": "n", "extra": 1})").error, "thing: unknown field \"extra\"");
  EXPECT_EQ(read("[]").error, "thing: must be an object, is array");
  EXPECT_EQ(read(R"({"name": "a\u0000b"})").error, "thing: field \"name\": must not contain a NUL character");
}

TEST(JsonObject, integers_out_of_range_are_refused_before_they_are_narrowed) {
  for (const char* count : {"0", "11", "-1", "18446744073709551615", "-9223372036854775808"}) {
    const Read result = read(std::string(R"({"name": "n", "count": )") + count + "}");
    EXPECT_EQ(result.error, std::string("thing: field \"count\": ") + count + " is not in 1 to 10");
  }
  for (const char* count : {"1.0", "1e1", "\"1\"", "18446744073709551616", "true", "[]"}) {
    const Read result = read(std::string(R"({"name": "n", "count": )") + count + "}");
    EXPECT_NE(result.error.find("must be an integer"), std::string::npos) << result.error;
  }
}

TEST(JsonObject, the_first_error_is_the_one_that_is_told_and_a_missing_field_last) {
  EXPECT_EQ(read(R"({"flag": 1, "extra": 1})").error,
            "thing: field \"flag\": must be true or false, is number");
  EXPECT_EQ(read(R"({"extra": 1})").error, "thing: unknown field \"extra\"");
  EXPECT_EQ(read("{}").error, "thing: field \"name\" is missing");
}

TEST(JsonObject, a_choice_gives_the_index_or_lists_what_there_is) {
  static constexpr std::array<std::string_view, 2> kNames = {"Sync", "Async"};
  const auto value = parse_json(R"({"good": "Async", "bad": "async"})", "body").value();
  JsonObject object(value, "thing");
  EXPECT_EQ(object.choice("good", kNames), 1U);
  EXPECT_FALSE(object.choice("bad", kNames).has_value());
  EXPECT_EQ(object.finish().error().message(), "thing: field \"bad\": \"async\" is not one of Sync, Async");
}

}  // namespace
}  // namespace mayfly::api
