#include "mmds/mmds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace mayfly {
namespace {

using Format = Mmds::Format;
using Status = Mmds::Reading::Status;
using ::testing::HasSubstr;

std::string nested(int levels) {
  return std::string(static_cast<std::size_t>(levels), '[') +
         std::string(static_cast<std::size_t>(levels), ']');
}

TEST(Mmds, nothing_is_there_before_it_is_put) {
  Mmds mmds;
  EXPECT_EQ(mmds.get().error().code(), ErrorCode::kNotFound);
  EXPECT_EQ(mmds.patch("{}").error().code(), ErrorCode::kNotFound);
  EXPECT_EQ(mmds.read("/", Format::kJson).status, Status::kNotFound);
  ASSERT_TRUE(mmds.put("{}"));
  EXPECT_EQ(mmds.get().value(), "{}");
}

TEST(Mmds, put_replaces_everything) {
  Mmds mmds;
  ASSERT_TRUE(mmds.put(R"({"a": 1, "b": 2})"));
  ASSERT_TRUE(mmds.put(R"({"c": [1.5, null, true]})"));
  EXPECT_EQ(mmds.get().value(), R"({"c":[1.5,null,true]})");
}

// RFC 7396, appendix A.
TEST(Mmds, patch_merges_as_the_standard_has_it) {
  struct Case {
    const char* original;
    const char* patch;
    const char* result;
  };
  for (const Case& test :
       {Case{R"({"a":"b"})", R"({"a":"c"})", R"({"a":"c"})"},
        Case{R"({"a":"b"})", R"({"b":"c"})", R"({"a":"b","b":"c"})"},
        Case{R"({"a":"b"})", R"({"a":null})", R"({})"},
        Case{R"({"a":"b","b":"c"})", R"({"a":null})", R"({"b":"c"})"},
        Case{R"({"a":["b"]})", R"({"a":"c"})", R"({"a":"c"})"},
        Case{R"({"a":"c"})", R"({"a":["b"]})", R"({"a":["b"]})"},
        Case{R"({"a":{"b":"c"}})", R"({"a":{"b":"d","c":null}})", R"({"a":{"b":"d"}})"},
        Case{R"({"a":[{"b":"c"}]})", R"({"a":[1]})", R"({"a":[1]})"},
        Case{R"(["a","b"])", R"(["c","d"])", R"(["c","d"])"}, Case{R"({"a":"b"})", R"(["c"])", R"(["c"])"},
        Case{R"({"a":"foo"})", R"(null)", R"(null)"}, Case{R"({"a":"foo"})", R"("bar")", R"("bar")"},
        Case{R"({"e":null})", R"({"a":1})", R"({"a":1,"e":null})"},
        Case{R"([1,2])", R"({"a":"b","c":null})", R"({"a":"b"})"},
        Case{R"({})", R"({"a":{"bb":{"ccc":null}}})", R"({"a":{"bb":{}}})"}}) {
    Mmds mmds;
    ASSERT_TRUE(mmds.put(test.original));
    ASSERT_TRUE(mmds.patch(test.patch)) << test.patch;
    EXPECT_EQ(mmds.get().value(), test.result) << test.original << " " << test.patch;
  }
}

TEST(Mmds, what_is_no_json_changes_nothing) {
  Mmds mmds;
  ASSERT_TRUE(mmds.put(R"({"a":1})"));
  for (const std::string& bad : {std::string(), std::string("{"), std::string("{} {}"),
                                 std::string("{'a':1}"), std::string("\"\xff\""), std::string(R"("\ud800")"),
                                 std::string("1e999"), std::string(R"({"b":1,"b":2})"), nested(101)}) {
    for (const auto& refused : {mmds.put(bad), mmds.patch(bad)}) {
      ASSERT_FALSE(refused) << bad;
      EXPECT_EQ(refused.error().code(), ErrorCode::kInvalidArgument) << bad;
    }
  }
  EXPECT_EQ(mmds.get().value(), R"({"a":1})");
  EXPECT_TRUE(mmds.put(nested(100)));
}

TEST(Mmds, key_that_is_given_twice_is_named) {
  EXPECT_THAT(Mmds().put(R"({"x":{"b":1,"b":2}})").error().message(), HasSubstr("\"b\""));
}

TEST(Mmds, limit_is_of_the_whole_compact_value_and_a_refusal_changes_nothing) {
  Mmds mmds(20);
  ASSERT_TRUE(mmds.put("{ \"a\" : \"01234567890\" ,\n \"b\" : 1 }").error().code() == ErrorCode::kExhausted);
  ASSERT_TRUE(mmds.put(R"({ "a" : "0123456789ab" })"));  // 20 bytes when compact
  EXPECT_EQ(mmds.put(R"({"a":"0123456789abc"})").error().code(), ErrorCode::kExhausted);
  EXPECT_EQ(mmds.patch(R"({"b":1})").error().code(), ErrorCode::kExhausted);
  EXPECT_EQ(mmds.get().value(), R"({"a":"0123456789ab"})");
  EXPECT_TRUE(mmds.patch(R"({"a":null,"b":1})"));
  EXPECT_EQ(mmds.get().value(), R"({"b":1})");
}

TEST(Mmds, default_limit_is_the_dialects) {
  Mmds mmds;
  EXPECT_TRUE(mmds.put("\"" + std::string(51'198, 'x') + "\""));
  EXPECT_FALSE(mmds.put("\"" + std::string(51'199, 'x') + "\""));
}

class MmdsReading : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(mmds_.put(R"({
      "latest": {
        "meta-data": {
          "ami-id": "ami-1", "count": 3, "flag": false, "list": ["zero", {"k": "v"}], "none": null,
          "network": {"macs": {"02:29:96:8f:6a:2d": {"device-number": "1"}}},
          "a/b": "slash", "m~n": "tilde", "with space": "space", "100%": "percent"
        },
        "user-data": "#cloud-config\n"
      },
      "2016-09-02": {"meta-data": "of its own"}
    })"));
  }
  std::string text(std::string_view path) {
    const auto reading = mmds_.read(path, Format::kText);
    EXPECT_EQ(reading.status, Status::kFound) << path;
    EXPECT_FALSE(reading.json);
    return reading.text;
  }
  std::string json(std::string_view path) {
    const auto reading = mmds_.read(path, Format::kJson);
    EXPECT_EQ(reading.status, Status::kFound) << path;
    EXPECT_TRUE(reading.json);
    return reading.text;
  }
  Status status(std::string_view path, Format format = Format::kText) {
    return mmds_.read(path, format).status;
  }

  Mmds mmds_;
};

TEST_F(MmdsReading, object_is_a_list_of_its_keys) {
  EXPECT_EQ(text("/"), "2016-09-02/\nlatest/");
  EXPECT_EQ(text(""), "2016-09-02/\nlatest/");
  EXPECT_EQ(text("/latest"), "meta-data/\nuser-data");
  EXPECT_EQ(text("/latest/meta-data/"),
            "100%\na/b\nami-id\ncount\nflag\nlist\nm~n\nnetwork/\nnone\nwith space");
}

TEST_F(MmdsReading, string_is_itself) {
  EXPECT_EQ(text("/latest/user-data"), "#cloud-config\n");
  EXPECT_EQ(text("/latest/meta-data/ami-id/"), "ami-1");
  EXPECT_EQ(text("//latest///meta-data//ami-id"), "ami-1");
}

TEST_F(MmdsReading, other_values_have_no_text) {
  for (const char* name : {"count", "flag", "list", "none"}) {
    EXPECT_EQ(status(std::string("/latest/meta-data/") + name), Status::kNoText) << name;
  }
}

TEST_F(MmdsReading, json_has_every_value) {
  EXPECT_EQ(json("/latest/meta-data/ami-id"), R"("ami-1")");
  EXPECT_EQ(json("/latest/meta-data/count"), "3");
  EXPECT_EQ(json("/latest/meta-data/none"), "null");
  EXPECT_EQ(json("/latest/meta-data/list"), R"(["zero",{"k":"v"}])");
  EXPECT_EQ(json("/latest/meta-data/network"), R"({"macs":{"02:29:96:8f:6a:2d":{"device-number":"1"}}})");
}

TEST_F(MmdsReading, elements_of_a_list_have_numbers) {
  EXPECT_EQ(text("/latest/meta-data/list/0"), "zero");
  EXPECT_EQ(text("/latest/meta-data/list/1/k"), "v");
  for (const char* name : {"2", "-1", "00", "01", "x", "0x0", "99999999999999999999999"}) {
    EXPECT_EQ(status(std::string("/latest/meta-data/list/") + name), Status::kNotFound) << name;
  }
}

TEST_F(MmdsReading, names_may_be_escaped) {
  EXPECT_EQ(text("/latest/meta-data/with%20space"), "space");
  EXPECT_EQ(text("/latest/meta-data/a~1b"), "slash");
  EXPECT_EQ(text("/latest/meta-data/a%2fb"), "slash");
  EXPECT_EQ(text("/latest/meta-data/m~0n"), "tilde");
  EXPECT_EQ(text("/latest/meta-data/m~n"), "tilde");
  EXPECT_EQ(text("/latest/meta-data/100%"), "percent");
  EXPECT_EQ(text("/latest/meta-data/100%25"), "percent");
  EXPECT_EQ(text("/latest/meta-data/network/macs/02%3A29:96:8f:6a:2d/device-number"), "1");
}

TEST_F(MmdsReading, what_is_not_there_is_not_found) {
  for (const char* path : {"/x", "/latest/meta-data/ami", "/latest/meta-data/ami-id/x",
                           "/latest/meta-data/none/x", "/latest/meta-data/count/0"}) {
    EXPECT_EQ(status(path), Status::kNotFound) << path;
    EXPECT_EQ(status(path, Format::kJson), Status::kNotFound) << path;
  }
}

TEST_F(MmdsReading, date_stands_for_latest_where_it_is_no_key) {
  EXPECT_EQ(text("/2009-04-04/meta-data/ami-id"), "ami-1");
  EXPECT_EQ(text("/1.0/meta-data/ami-id"), "ami-1");
  EXPECT_EQ(text("/2016-09-02/meta-data"), "of its own");
  EXPECT_EQ(status("/2009-04-4/meta-data"), Status::kNotFound);
  EXPECT_EQ(status("/latest/2009-04-04"), Status::kNotFound);
}

TEST_F(MmdsReading, compatible_service_answers_in_text_only) {
  mmds_.configure({.version = MmdsVersion::kV2, .imds_compat = true});
  EXPECT_EQ(mmds_.version(), MmdsVersion::kV2);
  const auto reading = mmds_.read("/latest/meta-data/ami-id", Format::kJson);
  EXPECT_EQ(reading.text, "ami-1");
  EXPECT_FALSE(reading.json);
}

TEST(MmdsThreads, reader_sees_whole_values_only) {
  Mmds mmds;
  ASSERT_TRUE(mmds.put(R"({"a":"0","b":"0"})"));
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (int round = 1; round <= 2000; ++round) {
      const std::string number = std::to_string(round);
      std::string change = R"({"a":")";
      change.append(number).append(R"(","b":")").append(number).append(R"("})");
      EXPECT_TRUE(mmds.patch(change));
    }
    stop = true;
  });
  while (!stop) {
    const std::string seen = mmds.read("/", Format::kJson).text;
    const std::size_t middle = seen.find("\",\"b\":\"");
    ASSERT_NE(middle, std::string::npos);
    EXPECT_EQ(seen.substr(6, middle - 6), seen.substr(middle + 7, seen.size() - middle - 9));
    (void)mmds.use_token(mmds.make_token(1).value());
  }
  writer.join();
}

}  // namespace
}  // namespace mayfly
