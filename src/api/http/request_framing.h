// Where a request ends: the one thing about which two readers of a byte stream must not disagree. Stricter
// than HTTP asks for (RFC 9112): what is malformed, or has more than one reading, is refused, not mended.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace mayfly::api {

// Why a request is refused; its connection is closed then, as nothing after it can be trusted.
struct Refusal {
  int status;          // 400 or 413
  std::string reason;  // a sentence of ours: no JSON escapes needed, nothing of the client's
};

struct RequestHead {
  // The bytes that the head takes of the connection, and those of the body that follow.
  std::size_t size = 0;
  std::size_t body_size = 0;
  bool http_1_0 = false;
  bool keep_alive = false;
  bool expects_continue = false;  // the client waits for "100 Continue" before it sends the body
  // Request line, headers and empty line for the parser. Without those that are this side's business
  // (connection, framing, expectation), or that would change an answer (ranges, compression).
  std::string text;
};

// Finds the head at the beginning of a connection's bytes while they arrive: its form is checked line by
// line, so that a client that speaks something else is told so at its first line.
class RequestFramer {
 public:
  // What is longer is refused before it is read.
  RequestFramer(std::size_t max_head_bytes, std::size_t max_body_bytes)
      : max_head_bytes_(max_head_bytes), max_body_bytes_(max_body_bytes) {}

  // Looks at the bytes added to `input` since the last call; `input` is all that arrived since the head
  // began. True once the head is whole: head() has it. False where more is needed, or where it is refused:
  // refusal() tells. Not called again after either until reset().
  bool advance(std::string_view input);

  const RequestHead& head() const { return head_; }
  const std::optional<Refusal>& refusal() const { return refusal_; }
  void reset();

 private:
  // All return false where the line is refused.
  bool refuse(int status, std::string reason);
  bool read_line(std::string_view line);
  bool read_request_line(std::string_view line);
  bool read_header(std::string_view line);
  bool read_content_length(std::string_view value);
  bool read_connection(std::string_view value);
  bool finish();

  std::size_t max_head_bytes_;
  std::size_t max_body_bytes_;
  RequestHead head_;
  std::optional<Refusal> refusal_;
  std::size_t line_start_ = 0;
  std::size_t searched_ = 0;  // no line ends before this
  std::size_t lines_ = 0;
  bool has_length_ = false;
  bool has_host_ = false;
  bool close_ = false;       // Connection: close
  bool keep_alive_ = false;  // Connection: keep-alive
};

}  // namespace mayfly::api
