// Just as much of HTTP/1.1 (RFC 9112) as a metadata service has to understand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace mayfly {

// A request, in the bytes that it was parsed from.
struct HttpRequest {
  std::string_view method{};
  std::string_view path{};  // as it was written, without a query
  bool keep_alive = true;
  bool accepts_json = false;
  bool forwarded = false;                   // X-Forwarded-For
  std::optional<std::string_view> token{};  // X-metadata-token, X-aws-ec2-metadata-token
  std::optional<std::string_view> ttl{};    // X-metadata-token-ttl-seconds and its namesake of EC2's
  std::string_view ttl_header{};            // which of the two
};

struct HttpParse {
  enum class Status : std::uint8_t {
    kIncomplete,
    kComplete,
    kBad,           // 400: no HTTP, or nothing that has one meaning only
    kUnsupported,   // 501: a body whose length is not told
    kWrongVersion,  // 505
  };
  Status status = Status::kIncomplete;
  HttpRequest request{};
  std::size_t head = 0;  // bytes to the end of the header
  std::size_t body = 0;  // bytes that follow: told by the client, not there yet perhaps
};

// Parses the request at the start of `bytes`. kIncomplete as long as the header's end is not there: it is for
// the caller to bound that.
HttpParse parse_http_request(std::string_view bytes);

}  // namespace mayfly
