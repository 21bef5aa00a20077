#include "mmds/http_request.h"

#include <gtest/gtest.h>

#include <string>

namespace mayfly {
namespace {

using Status = HttpParse::Status;

TEST(HttpRequest, plain_get_is_complete_at_its_empty_line) {
  const std::string text = "GET /latest/meta-data HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept: */*\r\n\r\n";
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_EQ(parse_http_request(std::string_view(text).substr(0, size)).status, Status::kIncomplete) << size;
  }
  const HttpParse parse = parse_http_request(text);
  ASSERT_EQ(parse.status, Status::kComplete);
  EXPECT_EQ(parse.head, text.size());
  EXPECT_EQ(parse.body, 0U);
  EXPECT_EQ(parse.request.method, "GET");
  EXPECT_EQ(parse.request.path, "/latest/meta-data");
  EXPECT_TRUE(parse.request.keep_alive);
  EXPECT_FALSE(parse.request.accepts_json);
  EXPECT_FALSE(parse.request.token);
}

TEST(HttpRequest, what_follows_is_not_part_of_it) {
  const std::string text = "GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
  const HttpParse parse = parse_http_request(text);
  EXPECT_EQ(parse.request.path, "/a");
  EXPECT_EQ(parse.head, text.size() / 2);
}

TEST(HttpRequest, empty_lines_in_front_are_passed_over) {
  const HttpParse parse = parse_http_request("\r\n\r\nGET / HTTP/1.1\r\n\r\n");
  EXPECT_EQ(parse.status, Status::kComplete);
  EXPECT_EQ(parse.head, 22U);
}

TEST(HttpRequest, target_is_a_path_or_a_url) {
  const auto path = [](const std::string& target) {
    static std::string text;
    text = "GET " + target + " HTTP/1.1\r\n\r\n";
    const HttpParse parse = parse_http_request(text);
    return parse.status == Status::kComplete ? std::string(parse.request.path) : "refused";
  };
  EXPECT_EQ(path("/"), "/");
  EXPECT_EQ(path("/a?b=c"), "/a");
  EXPECT_EQ(path("/a#b"), "/a");
  EXPECT_EQ(path("http://169.254.169.254/a/b?c"), "/a/b");
  EXPECT_EQ(path("HTTP://x"), "/");
  EXPECT_EQ(path("*"), "refused");
  EXPECT_EQ(path("a/b"), "refused");
  EXPECT_EQ(path("https://x/"), "refused");
  EXPECT_EQ(path("/\x01"), "refused");
  EXPECT_EQ(path("/\xc3\xa4"), "refused");
}

TEST(HttpRequest, headers_are_found_whatever_their_case) {
  const std::string text =
      "PUT /latest/api/token HTTP/1.1\r\nx-AWS-ec2-METADATA-token-ttl-seconds:  60 "
      "\r\nX-metadata-TOKEN:abc\r\n"
      "x-forwarded-for: 1.2.3.4\r\nACCEPT: text/html, Application/JSON;q=0.5\r\nContent-length: 7\r\n\r\n";
  const HttpParse parse = parse_http_request(text);
  ASSERT_EQ(parse.status, Status::kComplete);
  EXPECT_EQ(parse.request.ttl, "60");
  EXPECT_EQ(parse.request.ttl_header, "x-AWS-ec2-METADATA-token-ttl-seconds");
  EXPECT_EQ(parse.request.token, "abc");
  EXPECT_TRUE(parse.request.forwarded);
  EXPECT_TRUE(parse.request.accepts_json);
  EXPECT_EQ(parse.body, 7U);
}

TEST(HttpRequest, connection_lasts_as_its_version_and_header_say) {
  const auto lasts = [](const std::string& version, const std::string& headers) {
    return parse_http_request("GET / HTTP/" + version + "\r\n" + headers + "\r\n").request.keep_alive;
  };
  EXPECT_TRUE(lasts("1.1", ""));
  EXPECT_FALSE(lasts("1.0", ""));
  EXPECT_FALSE(lasts("1.1", "Connection: close\r\n"));
  EXPECT_FALSE(lasts("1.1", "Connection: TE, Close\r\n"));
  EXPECT_TRUE(lasts("1.0", "Connection: Keep-Alive\r\n"));
  EXPECT_TRUE(lasts("1.1", "Connection: closed\r\n"));
}

TEST(HttpRequest, what_is_not_http_is_bad) {
  for (const char* text : {
           "GET / HTTP/1.1 \r\n\r\n",
           "GET  / HTTP/1.1\r\n\r\n",
           " GET / HTTP/1.1\r\n\r\n",
           "GET /\r\n\r\n",
           "GET / http/1.1\r\n\r\n",
           "GET / HTTP/11\r\n\r\n",
           "G\xc3T / HTTP/1.1\r\n\r\n",
           "G(T / HTTP/1.1\r\n\r\n",
           "/ HTTP/1.1\r\n\r\n",
           "\x16\x03\x01\r\n\r\n",
           "GET / HTTP/1.1\r\nHost\r\n\r\n",
           "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
           "GET / HTTP/1.1\r\n: x\r\n\r\n",
           "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
           "GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
           "GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
           "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
           "GET / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n",
           "GET / HTTP/1.1\r\nContent-Length: \r\n\r\n",
           "GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
           "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
       }) {
    EXPECT_EQ(parse_http_request(text).status, Status::kBad) << text;
  }
}

TEST(HttpRequest, other_versions_and_codings_are_told_apart) {
  EXPECT_EQ(parse_http_request("GET / HTTP/2.0\r\n\r\n").status, Status::kWrongVersion);
  EXPECT_EQ(parse_http_request("GET / HTTP/0.9\r\n\r\n").status, Status::kWrongVersion);
  EXPECT_EQ(parse_http_request("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").status,
            Status::kUnsupported);
}

}  // namespace
}  // namespace mayfly
