#include "mmds/mmds_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/metrics.h"

namespace mayfly {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::uint64_t g_now = 1'000'000'000;
constexpr Clock kTestClock{[] { return g_now; }, [] { return g_now; }};

class MmdsService : public ::testing::Test {
 protected:
  void use(MmdsVersion version, bool imds_compat = false) {
    mmds_.configure({.version = version, .imds_compat = imds_compat});
    ASSERT_TRUE(mmds_.put(R"({"latest":{"meta-data":{"ami-id":"ami-1","count":3}}})"));
  }
  // The whole response to a request that is complete. `headers` end their lines themselves.
  std::string ask(const std::string& line, const std::string& headers = "") {
    const std::string request = line + " HTTP/1.1\r\nHost: 169.254.169.254\r\n" + headers + "\r\n";
    const HttpAnswer answer = answer_guest(mmds_, request, false);
    EXPECT_EQ(answer.used, request.size());
    closed_ = answer.close;
    return answer.bytes;
  }
  static std::string body(const std::string& response) {
    return response.substr(response.find("\r\n\r\n") + 4);
  }
  static std::string status(const std::string& response) { return response.substr(9, 3); }

  Mmds mmds_{Mmds::kDefaultSizeLimit, kTestClock};
  bool closed_ = false;
};

TEST_F(MmdsService, response_is_complete_http) {
  use(MmdsVersion::kV1);
  EXPECT_EQ(ask("GET /latest/meta-data/ami-id"),
            "HTTP/1.1 200 OK\r\nServer: Mayfly\r\nConnection: keep-alive\r\nContent-Type: text/plain\r\n"
            "Content-Length: 5\r\n\r\nami-1");
  EXPECT_FALSE(closed_);
}

TEST_F(MmdsService, json_is_given_to_who_accepts_it) {
  use(MmdsVersion::kV1);
  const auto response = ask("GET /latest/meta-data", "Accept: application/json\r\n");
  EXPECT_THAT(response, HasSubstr("Content-Type: application/json\r\n"));
  EXPECT_EQ(body(response), R"({"ami-id":"ami-1","count":3})");
}

TEST_F(MmdsService, compatible_service_gives_text_to_everybody) {
  use(MmdsVersion::kV1, true);
  const auto response = ask("GET /latest/meta-data", "Accept: application/json\r\n");
  EXPECT_THAT(response, HasSubstr("Content-Type: text/plain\r\n"));
  EXPECT_EQ(body(response), "ami-id\ncount");
}

TEST_F(MmdsService, statuses_are_the_dialects) {
  struct Case {
    const char* line;
    const char* headers;
    const char* status;
  };
  use(MmdsVersion::kV1);
  for (const Case& test : {
           Case{"GET /latest", "", "200"},
           Case{"GET /nothing", "", "404"},
           Case{"GET /latest/meta-data/count", "", "501"},
           Case{"GET /latest/meta-data/count", "Accept: application/json\r\n", "200"},
           Case{"GET /latest", "X-metadata-token: wrong\r\n", "200"},
           Case{"POST /latest", "", "405"},
           Case{"DELETE /latest", "", "405"},
           Case{"HEAD /latest", "", "405"},
           Case{"PUT /latest", "X-metadata-token-ttl-seconds: 60\r\n", "404"},
           Case{"PUT /latest/api/token", "", "400"},
           Case{"PUT /latest/api/token", "X-metadata-token-ttl-seconds: 60\r\n", "200"},
           Case{"PUT //latest//api/token", "X-metadata-token-ttl-seconds: 60\r\n", "200"},
           Case{"PUT /latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n", "200"},
           Case{"PUT /latest/api/token", "X-metadata-token-ttl-seconds: 0\r\n", "400"},
           Case{"PUT /latest/api/token", "X-metadata-token-ttl-seconds: 21601\r\n", "400"},
           Case{"PUT /latest/api/token", "X-metadata-token-ttl-seconds: -1\r\n", "400"},
           Case{"PUT /latest/api/token", "X-metadata-token-ttl-seconds: 0x10\r\n", "400"},
           Case{"PUT /latest/api/token", "X-metadata-token-ttl-seconds: 99999999999999\r\n", "400"},
           Case{"PUT /latest/api/token", "X-metadata-token-ttl-seconds:\r\n", "400"},
           Case{"PUT /latest/api/token", "X-metadata-token-ttl-seconds: 60\r\nX-Forwarded-For: 1.1.1.1\r\n",
                "400"},
       }) {
    EXPECT_EQ(status(ask(test.line, test.headers)), test.status) << test.line << " " << test.headers;
    EXPECT_FALSE(closed_);
  }
}

TEST_F(MmdsService, other_methods_are_told_which_there_are) {
  use(MmdsVersion::kV2);
  EXPECT_THAT(ask("PATCH /latest"), HasSubstr("\r\nAllow: GET, PUT\r\n"));
  EXPECT_THAT(ask("HEAD /latest"), EndsWith("\r\n\r\n"));
}

TEST_F(MmdsService, second_version_reads_with_a_token_only) {
  use(MmdsVersion::kV2);
  EXPECT_EQ(status(ask("GET /latest")), "401");
  EXPECT_EQ(status(ask("GET /nothing")), "401");
  EXPECT_EQ(status(ask("GET /latest", "X-metadata-token: wrong\r\n")), "401");

  const auto response =
      ask("PUT /latest/api/token", "X-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n");
  EXPECT_THAT(response, HasSubstr("\r\nX-metadata-token-ttl-seconds: 60\r\n"));
  const std::string token = body(response);
  for (const char* name : {"X-metadata-token: ", "X-aws-ec2-metadata-token: "}) {
    EXPECT_EQ(status(ask("GET /latest", name + token + "\r\n")), "200");
  }
  EXPECT_EQ(status(ask("GET /nothing", "X-metadata-token: " + token + "\r\n")), "404");
  g_now += 60'000'000'000;
  EXPECT_EQ(status(ask("GET /latest", "X-metadata-token: " + token + "\r\n")), "401");
}

TEST_F(MmdsService, requests_that_version_two_would_refuse_are_counted) {
  MmdsMetrics& counts = metrics().mmds;
  for (const MmdsVersion version : {MmdsVersion::kV1, MmdsVersion::kV2}) {
    use(version);
    const std::uint64_t none = counts.rx_no_token.value();
    const std::uint64_t invalid = counts.rx_invalid_token.value();
    ask("GET /latest");
    ask("GET /latest", "X-metadata-token: wrong\r\n");
    ask("GET /latest", "X-metadata-token: " + mmds_.make_token(10).value() + "\r\n");
    EXPECT_EQ(counts.rx_no_token.value(), none + 1);
    EXPECT_EQ(counts.rx_invalid_token.value(), invalid + 1);
  }
}

// What cloud-init's data source for EC2 asks.
TEST_F(MmdsService, cloud_init_finds_its_way) {
  mmds_.configure({.version = MmdsVersion::kV2, .imds_compat = true});
  ASSERT_TRUE(mmds_.put(R"({"latest":{"meta-data":{"instance-id":"i-1","placement":{"availability-zone":"a"}},
                            "user-data":"#cloud-config\n"}})"));
  const std::string token =
      body(ask("PUT /latest/api/token",
               "Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
               "X-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 0\r\n"));
  const auto get = [&](const std::string& path) {
    return ask("GET " + path, "X-aws-ec2-metadata-token: " + token + "\r\n");
  };
  EXPECT_EQ(body(get("/2009-04-04/meta-data/instance-id")), "i-1");
  EXPECT_EQ(body(get("/2021-03-23/meta-data/instance-id")), "i-1");
  EXPECT_EQ(body(get("/2021-03-23/meta-data/")), "instance-id\nplacement/");
  EXPECT_EQ(body(get("/2021-03-23/meta-data/placement/")), "availability-zone");
  EXPECT_EQ(body(get("/2021-03-23/user-data")), "#cloud-config\n");
  EXPECT_EQ(status(get("/2021-03-23/dynamic/instance-identity/")), "404");
}

TEST_F(MmdsService, incomplete_request_waits_unless_there_is_no_room) {
  use(MmdsVersion::kV1);
  const std::string start = "GET /latest HTTP/1.1\r\nHost:";
  EXPECT_EQ(answer_guest(mmds_, start, false).used, 0U);
  EXPECT_EQ(answer_guest(mmds_, start, false).bytes, "");
  const HttpAnswer answer = answer_guest(mmds_, start, true);
  EXPECT_EQ(answer.used, start.size());
  EXPECT_TRUE(answer.close);
  EXPECT_THAT(answer.bytes, StartsWith("HTTP/1.1 431 "));
}

TEST_F(MmdsService, body_is_waited_for_and_passed_over) {
  use(MmdsVersion::kV1);
  const std::string head = "GET /latest HTTP/1.1\r\nContent-Length: 5\r\n\r\n";
  EXPECT_EQ(answer_guest(mmds_, head + "1234", false).used, 0U);
  EXPECT_EQ(answer_guest(mmds_, head + "12345GET", false).used, head.size() + 5);
  const HttpAnswer answer = answer_guest(mmds_, head + "1234", true);
  EXPECT_TRUE(answer.close);
  EXPECT_THAT(answer.bytes, StartsWith("HTTP/1.1 413 "));
}

TEST_F(MmdsService, what_cannot_be_understood_ends_the_connection) {
  for (const auto& [request, status] :
       {std::pair("nonsense\r\n\r\n", "HTTP/1.1 400 "), std::pair("GET / HTTP/2.0\r\n\r\n", "HTTP/1.1 505 "),
        std::pair("PUT / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "HTTP/1.1 501 ")}) {
    const HttpAnswer answer = answer_guest(mmds_, request, false);
    EXPECT_THAT(answer.bytes, StartsWith(status));
    EXPECT_THAT(answer.bytes, HasSubstr("\r\nConnection: close\r\n"));
    EXPECT_TRUE(answer.close);
  }
}

TEST_F(MmdsService, client_that_wants_the_end_is_told_it) {
  use(MmdsVersion::kV1);
  EXPECT_THAT(ask("GET /latest", "Connection: close\r\n"), HasSubstr("\r\nConnection: close\r\n"));
  EXPECT_TRUE(closed_);
}

TEST_F(MmdsService, store_without_data_has_nothing_to_find) {
  EXPECT_EQ(status(ask("GET /")), "404");
}

}  // namespace
}  // namespace mayfly
