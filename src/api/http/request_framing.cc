#include "api/http/request_framing.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <utility>

#include "base/http_text.h"
#include "base/text.h"

namespace mayfly::api {
namespace {

// Beyond what any client sends, and no work for the parser.
constexpr std::size_t kMaxHeaders = 64;
constexpr std::size_t kMaxMethodLength = 16;

bool is_digit(char character) {
  return character >= '0' && character <= '9';
}

// Of origin form (RFC 9112, 3.2.1), without a fragment: "/path?query".
bool is_target(std::string_view text) {
  return text.starts_with('/') && std::ranges::all_of(text, [](char character) {
           return character > 0x20 && character < 0x7f && character != '#';
         });
}

// Headers that the parser does not get to see: handled here, or asking for what this server does not do.
constexpr std::array<std::string_view, 6> kWithheld = {"Content-Length", "Connection", "Keep-Alive",
                                                       "Expect",         "Range",      "Accept-Encoding"};

}  // namespace

bool RequestFramer::refuse(int status, std::string reason) {
  refusal_ = Refusal{status, std::move(reason)};
  return false;
}

void RequestFramer::reset() {
  *this = RequestFramer(max_head_bytes_, max_body_bytes_);
}

bool RequestFramer::advance(std::string_view input) {
  const std::string_view bounded = input.substr(0, max_head_bytes_);
  while (true) {
    const std::size_t end = bounded.find('\n', searched_);
    if (end == std::string_view::npos) {
      searched_ = bounded.size();
      if (bounded.size() == max_head_bytes_) {
        return refuse(400, "The request's line and headers are longer than this server accepts: " +
                               std::to_string(max_head_bytes_) + " bytes at most.");
      }
      return false;
    }
    searched_ = end + 1;
    if (end == line_start_ || bounded[end - 1] != '\r') {
      return refuse(400, "A line of the request does not end with CR LF.");
    }
    const std::string_view line = bounded.substr(line_start_, end - 1 - line_start_);
    line_start_ = end + 1;
    if (line.empty() && lines_ > 0) {
      head_.size = end + 1;
      return finish();
    }
    if (!read_line(line)) {
      return false;
    }
    ++lines_;
  }
}

bool RequestFramer::read_line(std::string_view line) {
  if (lines_ == 0) {
    return read_request_line(line);
  }
  if (lines_ > kMaxHeaders) {
    return refuse(400, "The request has more headers than this server accepts.");
  }
  return read_header(line);
}

bool RequestFramer::read_request_line(std::string_view line) {
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) {
    return refuse(400, "The request's first line is not: method, path, version.");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (!is_http_token(method) || method.size() > kMaxMethodLength) {
    return refuse(400, "The request's method is malformed.");
  }
  if (!is_target(target)) {
    return refuse(400, "The request's path does not begin with a slash, or has characters that no path has.");
  }
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    return refuse(400, "The request's version is neither HTTP/1.1 nor HTTP/1.0.");
  }
  head_.http_1_0 = version == "HTTP/1.0";
  head_.text.append(line).append("\r\n");
  return true;
}

bool RequestFramer::read_header(std::string_view line) {
  // A name that is no token covers a space before the colon, and a line that continues the last one.
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_http_token(line.substr(0, colon))) {
    return refuse(400, "A header of the request is malformed.");
  }
  const std::string_view name = line.substr(0, colon);
  const std::string_view value = trim_blanks(line.substr(colon + 1));
  if (!is_http_field_value(value)) {
    return refuse(400, "A header of the request has a control character.");
  }
  const auto is = [name](std::string_view other) { return equal_ignoring_case(name, other); };
  if (is("Transfer-Encoding")) {
    return refuse(400, "Transfer-Encoding is not supported: send a Content-Length.");
  }
  if (is("Host")) {
    if (has_host_) {
      return refuse(400, "The request has more than one Host.");
    }
    has_host_ = true;
  }
  if (is("Content-Length") && !read_content_length(value)) {
    return false;
  }
  if (is("Connection") && !read_connection(value)) {
    return false;
  }
  if (is("Expect")) {
    if (!equal_ignoring_case(value, "100-continue")) {
      return refuse(400, "The request expects what this server does not know.");
    }
    head_.expects_continue = true;
  }
  if (std::ranges::none_of(kWithheld, is)) {
    head_.text.append(name).append(": ").append(value).append("\r\n");
  }
  return true;
}

bool RequestFramer::read_content_length(std::string_view value) {
  if (has_length_) {
    return refuse(400, "The request has more than one Content-Length.");
  }
  has_length_ = true;
  if (value.empty() || !std::ranges::all_of(value, is_digit)) {
    return refuse(400, "The request's Content-Length is not a number.");
  }
  std::uint64_t length = 0;
  const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), length);
  // The rest of the head is not waited for: whatever it is, the body will not be read.
  if (error != std::errc() || length > max_body_bytes_) {
    return refuse(413, "The request's body is longer than this server accepts: " +
                           std::to_string(max_body_bytes_) + " bytes at most.");
  }
  head_.body_size = static_cast<std::size_t>(length);
  return true;
}

bool RequestFramer::read_connection(std::string_view value) {
  while (!value.empty()) {
    const std::size_t comma = value.find(',');
    const std::string_view option = trim_blanks(value.substr(0, comma));
    close_ = close_ || equal_ignoring_case(option, "close");
    keep_alive_ = keep_alive_ || equal_ignoring_case(option, "keep-alive");
    value = comma == std::string_view::npos ? std::string_view() : value.substr(comma + 1);
  }
  return true;
}

bool RequestFramer::finish() {
  head_.keep_alive = !close_ && (keep_alive_ || !head_.http_1_0);
  // HTTP/1.0 does not know the expectation, and a client without a body waits for nothing.
  head_.expects_continue = head_.expects_continue && !head_.http_1_0 && head_.body_size > 0;
  head_.text.append("\r\n");
  return true;
}

}  // namespace mayfly::api
