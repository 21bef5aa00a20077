// What a client sends over one connection: the input is its bytes, as many requests as they hold. However
// they are cut on their way they are the same requests; what is accepted has one reading; every answer is
// whole.
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "api/http/http_codec.h"
#include "api/http/http_server.h"
#include "api/http/request_framing.h"
#include "base/check.h"

namespace mayfly::api {
namespace {

constexpr std::size_t kMaxHead = 1024;
constexpr std::size_t kMaxBody = 256;

// The framer, given the input in pieces whose sizes its bytes decide.
void check_pieces(std::string_view input, bool whole, const RequestFramer& expected) {
  RequestFramer framer(kMaxHead, kMaxBody);
  bool found = false;
  for (std::size_t size = 0; !found && !framer.refusal() && size < input.size();) {
    size += 1U + static_cast<unsigned char>(input[size]) % 16U;
    size = size < input.size() ? size : input.size();
    found = framer.advance(input.substr(0, size));
  }
  MAYFLY_CHECK(found == whole, "pieces end where the whole does");
  MAYFLY_CHECK(framer.refusal().has_value() == expected.refusal().has_value(),
               "pieces are refused as the whole");
  if (framer.refusal()) {
    MAYFLY_CHECK(framer.refusal()->reason == expected.refusal()->reason, "for the same reason");
  }
  if (found) {
    MAYFLY_CHECK(framer.head().size == expected.head().size && framer.head().text == expected.head().text &&
                     framer.head().body_size == expected.head().body_size &&
                     framer.head().keep_alive == expected.head().keep_alive,
                 "pieces are the same request");
  }
}

// By looking at the bytes again, as another server would.
void check_head(std::string_view input, const RequestHead& head) {
  MAYFLY_CHECK(head.size <= kMaxHead && head.size <= input.size(), "a head keeps to its limit");
  MAYFLY_CHECK(head.body_size <= kMaxBody, "a body keeps to its limit");
  const std::string_view text = input.substr(0, head.size);
  MAYFLY_CHECK(text.find("\r\n\r\n") == head.size - 4, "a head ends at its first empty line");
  for (std::size_t i = 0; i < text.size(); ++i) {
    MAYFLY_CHECK(text[i] != '\0' && (text[i] != '\n' || text[i - 1] == '\r') &&
                     (text[i] != '\r' || text[i + 1] == '\n'),
                 "lines end in one way, texts in none");
  }
  std::string lower(text);
  for (char& character : lower) {
    character = character >= 'A' && character <= 'Z' ? static_cast<char>(character + 32) : character;
  }
  MAYFLY_CHECK(lower.find("\ntransfer-encoding:") == std::string::npos, "no body comes in chunks");
  const std::size_t length = lower.find("\ncontent-length:");
  MAYFLY_CHECK(length == lower.rfind("\ncontent-length:"), "one length at most");
  MAYFLY_CHECK(length != std::string::npos || head.body_size == 0, "no length, no body");
}

void check_answer(const std::string& answer, bool keep_alive, bool head_request) {
  MAYFLY_CHECK(answer.starts_with("HTTP/1.1 "), "an answer is one");
  const std::size_t end = answer.find("\r\n\r\n");
  MAYFLY_CHECK(end != std::string::npos, "an answer has an end of its head");
  const std::string_view head = std::string_view(answer).substr(0, end + 2);
  const std::string_view body = std::string_view(answer).substr(end + 4);
  MAYFLY_CHECK(head.find("\r\nServer: F\r\n") != std::string_view::npos, "an answer names the server");
  MAYFLY_CHECK(
      head.find("secret") == std::string_view::npos && head.find("EXCEPTION") == std::string_view::npos,
      "no exception is told");
  MAYFLY_CHECK((head.find("\r\nConnection: close\r\n") != std::string_view::npos) == !keep_alive,
               "an answer says whether the connection ends");
  constexpr std::string_view kLength = "\r\nContent-Length: ";
  const std::size_t found = head.find(kLength);
  if (found == std::string_view::npos) {
    MAYFLY_CHECK(body.empty(), "no length, no body");
    return;
  }
  MAYFLY_CHECK(!head.starts_with("HTTP/1.1 204"), "a 204 has no length");
  std::size_t length = 0;
  std::from_chars(head.data() + found + kLength.size(), head.data() + head.size(), length);
  MAYFLY_CHECK(head_request ? body.empty() : body.size() == length, "a body is as long as it says");
}

// One request at the beginning of `input`; how many bytes it has, or 0 where there is no more to read.
std::size_t serve(HttpCodec& codec, std::string_view input) {
  RequestFramer framer(kMaxHead, kMaxBody);
  const bool whole = framer.advance(input);
  check_pieces(input, whole, framer);
  if (framer.refusal()) {
    check_answer(codec.refuse(*framer.refusal()), false, false);
    return 0;
  }
  if (!whole || input.size() - framer.head().size < framer.head().body_size) {
    return 0;
  }
  const RequestHead& head = framer.head();
  check_head(input, head);
  const std::string_view body = input.substr(head.size, head.body_size);
  const HttpCodec::Answer answer = codec.answer(
      head, std::string(body), head.keep_alive, [&](const HttpRequest& request, const HttpCodec::Context&) {
        MAYFLY_CHECK(request.body == body, "a body arrives as it was sent");
        MAYFLY_CHECK(input.starts_with(request.method + " " + request.path), "so do method and path");
        MAYFLY_CHECK(request.path.starts_with('/') && request.path.find_first_of("? #") == std::string::npos,
                     "a path is one");
        if (request.body.starts_with('t')) {
          throw std::runtime_error("the secret");
        }
        HttpResponse response;
        response.status = request.body.starts_with('n') ? 204 : 200;
        response.body = request.body;
        response.stream_events = request.path == "/events";
        return response;
      });
  check_answer(answer.bytes, answer.keep_alive, input.starts_with("HEAD "));
  MAYFLY_CHECK(head.keep_alive || !answer.keep_alive, "a client that closes is not kept");
  return answer.keep_alive ? head.size + head.body_size : 0;
}

}  // namespace
}  // namespace mayfly::api

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static mayfly::api::HttpCodec codec("F");
  const std::string all(data, data + size);
  std::string_view input = all;
  while (!input.empty()) {
    const std::size_t served = mayfly::api::serve(codec, input);
    if (served == 0) {
      break;
    }
    input.remove_prefix(served);
  }
  return 0;
}
