#include "api/http/request_framing.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace mayfly::api {
namespace {

constexpr std::size_t kMaxHead = 256;
constexpr std::size_t kMaxBody = 100;

RequestHead head_of(std::string_view text) {
  RequestFramer framer(kMaxHead, kMaxBody);
  EXPECT_TRUE(framer.advance(text)) << text;
  return framer.head();
}

int status_of(std::string_view text) {
  RequestFramer framer(kMaxHead, kMaxBody);
  EXPECT_FALSE(framer.advance(text)) << text;
  return framer.refusal() ? framer.refusal()->status : 0;
}

TEST(RequestFramer, a_head_in_pieces_is_the_same_as_a_whole_one) {
  const std::string text = "PUT /a?b=c HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: \t7 \r\nAccept:\r\n\r\n";
  const RequestHead whole = head_of(text + "{}and what follows");
  RequestFramer framer(kMaxHead, kMaxBody);
  for (std::size_t size = 0; size < text.size(); ++size) {
    ASSERT_FALSE(framer.advance(std::string_view(text).substr(0, size)));
    ASSERT_FALSE(framer.refusal().has_value()) << framer.refusal()->reason;
  }
  ASSERT_TRUE(framer.advance(text));
  for (const RequestHead& head : {whole, framer.head()}) {
    EXPECT_EQ(head.size, text.size());
    EXPECT_EQ(head.body_size, 7U);
    EXPECT_EQ(head.text, "PUT /a?b=c HTTP/1.1\r\nHost: x\r\nAccept: \r\n\r\n");
    EXPECT_TRUE(head.keep_alive);
  }
}

TEST(RequestFramer, whether_the_connection_is_kept_follows_version_and_header) {
  EXPECT_TRUE(head_of("GET / HTTP/1.1\r\n\r\n").keep_alive);
  EXPECT_FALSE(head_of("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").keep_alive);
  EXPECT_FALSE(head_of("GET / HTTP/1.1\r\nConnection: keep-alive, ,close\r\n\r\n").keep_alive);
  EXPECT_FALSE(head_of("GET / HTTP/1.1\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n").keep_alive);
  EXPECT_TRUE(head_of("GET / HTTP/1.1\r\nConnection: closed\r\n\r\n").keep_alive);
  EXPECT_FALSE(head_of("GET / HTTP/1.0\r\n\r\n").keep_alive);
  EXPECT_TRUE(head_of("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
}

TEST(RequestFramer, an_expectation_counts_where_there_is_a_body_and_http_1_1) {
  EXPECT_TRUE(
      head_of("PUT / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n").expects_continue);
  EXPECT_FALSE(head_of("PUT / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n").expects_continue);
  EXPECT_FALSE(
      head_of("PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n").expects_continue);
}

TEST(RequestFramer, what_is_handled_here_or_not_at_all_is_kept_from_the_parser) {
  EXPECT_EQ(head_of("GET / HTTP/1.1\r\nRange: bytes=0-\r\nKeep-Alive: max=1\r\naccept-encoding: br\r\n"
                    "Last-Event-ID: 3\r\nExpect: 100-continue\r\n\r\n")
                .text,
            "GET / HTTP/1.1\r\nLast-Event-ID: 3\r\n\r\n");
}

TEST(RequestFramer, a_body_at_its_limit_is_taken_and_one_byte_more_is_not) {
  EXPECT_EQ(head_of("PUT / HTTP/1.1\r\nContent-Length: 100\r\n\r\n").body_size, 100U);
  EXPECT_EQ(head_of("PUT / HTTP/1.1\r\nContent-Length: 000000000000000000000000100\r\n\r\n").body_size, 100U);
  EXPECT_EQ(status_of("PUT / HTTP/1.1\r\nContent-Length: 101\r\n"), 413);
  EXPECT_EQ(status_of("PUT / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n"), 413);
}

TEST(RequestFramer, a_head_at_its_limit_is_taken_and_one_byte_more_is_not) {
  const std::string begin = "GET / HTTP/1.1\r\nX: ";
  const std::string end = "\r\n\r\n";
  const std::string longest(kMaxHead - begin.size() - end.size(), 'x');
  EXPECT_EQ(head_of(begin + longest + end).size, kMaxHead);
  EXPECT_EQ(status_of(begin + longest + "x" + end), 400);
  EXPECT_EQ(status_of(std::string(kMaxHead, 'x')), 400);
}

TEST(RequestFramer, what_is_wrong_is_refused_at_its_line_and_not_only_at_the_end) {
  EXPECT_EQ(status_of("\x16\x03\x01\x02\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/2.0\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"), 400);
}

TEST(RequestFramer, after_a_reset_the_next_request_owes_nothing_to_the_last) {
  RequestFramer framer(kMaxHead, kMaxBody);
  ASSERT_TRUE(framer.advance("PUT / HTTP/1.0\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"));
  framer.reset();
  ASSERT_TRUE(framer.advance("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
  EXPECT_EQ(framer.head().body_size, 0U);
  EXPECT_TRUE(framer.head().keep_alive);
  EXPECT_FALSE(framer.head().http_1_0);
}

}  // namespace
}  // namespace mayfly::api
