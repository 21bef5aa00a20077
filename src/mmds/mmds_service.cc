#include "mmds/mmds_service.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "base/metrics.h"
#include "base/text.h"
#include "mmds/http_request.h"

namespace mayfly {
namespace {

struct Response {
  unsigned status = 200;
  std::string_view type = "text/plain";
  std::string body{};
  std::string extra{};  // header lines
};

std::string_view reason(unsigned status) {
  struct Reason {
    unsigned status;
    std::string_view phrase;
  };
  constexpr std::array<Reason, 10> kReasons = {{{200, "OK"},
                                                {400, "Bad Request"},
                                                {401, "Unauthorized"},
                                                {404, "Not Found"},
                                                {405, "Method Not Allowed"},
                                                {413, "Content Too Large"},
                                                {431, "Request Header Fields Too Large"},
                                                {500, "Internal Server Error"},
                                                {501, "Not Implemented"},
                                                {505, "HTTP Version Not Supported"}}};
  const auto* const found = std::ranges::find(kReasons, status, &Reason::status);
  return found == kReasons.end() ? "" : found->phrase;
}

Response failure(unsigned status, std::string why) {
  return {.status = status, .body = std::move(why) + "\n"};
}

std::string to_bytes(const Response& response, bool close, bool with_body) {
  std::string bytes = "HTTP/1.1 " + std::to_string(response.status) + " ";
  bytes += reason(response.status);
  bytes += "\r\nServer: Mayfly\r\nConnection: ";
  bytes += close ? "close" : "keep-alive";
  bytes += "\r\nContent-Type: ";
  bytes += response.type;
  bytes += "\r\nContent-Length: " + std::to_string(response.body.size()) + "\r\n" + response.extra + "\r\n";
  if (with_body) {
    bytes += response.body;
  }
  return bytes;
}

Response read(Mmds& mmds, const HttpRequest& request) {
  MmdsMetrics& counts = metrics().mmds;
  const bool known = request.token && mmds.use_token(*request.token);
  if (!request.token) {
    counts.rx_no_token.add();
  } else if (!known) {
    counts.rx_invalid_token.add();
  }
  // Version 1 only counts: who wants to change to version 2 sees what would fail.
  if (!known && mmds.version() == MmdsVersion::kV2) {
    return failure(401, request.token ? "This session token is not known, or has expired."
                                      : "A session token is needed: PUT /latest/api/token gives one.");
  }
  const auto format = request.accepts_json ? Mmds::Format::kJson : Mmds::Format::kText;
  Mmds::Reading reading = mmds.read(request.path, format);
  switch (reading.status) {
    case Mmds::Reading::Status::kFound:
      break;
    case Mmds::Reading::Status::kNotFound:
      return failure(404, "There is no such metadata.");
    case Mmds::Reading::Status::kNoText:
      return failure(501, "This is neither a string nor an object: it can be read as application/json only.");
  }
  return {.type = reading.json ? "application/json" : "text/plain", .body = std::move(reading.text)};
}

Response make_token(Mmds& mmds, const HttpRequest& request) {
  // A proxy that was tricked into asking adds this header.
  if (request.forwarded) {
    return failure(400, "Requests for a token must not have been forwarded.");
  }
  std::string path;
  for (const char character : request.path) {
    if (character != '/' || !path.ends_with('/')) {
      path += character;
    }
  }
  if (path != "/latest/api/token") {
    return failure(404, "Only /latest/api/token takes a PUT.");
  }
  if (!request.ttl) {
    return failure(400, "The header X-metadata-token-ttl-seconds is missing.");
  }
  const bool decimal =
      std::ranges::all_of(*request.ttl, [](char digit) { return digit >= '0' && digit <= '9'; });
  const auto ttl = decimal ? parse_integer<std::uint32_t>(*request.ttl) : std::nullopt;
  if (!ttl) {
    return failure(400, "The time to live is no number of seconds.");
  }
  auto token = mmds.make_token(*ttl);
  if (!token) {
    const bool out_of_range = token.error().code() == ErrorCode::kOutOfRange;
    return out_of_range ? failure(400, "The time to live must be 1 to 21600 seconds.")
                        : failure(500, "No token can be made now.");
  }
  return {.body = std::move(*token),
          .extra = std::string(request.ttl_header) + ": " + std::to_string(*ttl) + "\r\n"};
}

Response answer(Mmds& mmds, const HttpRequest& request) {
  if (request.method == "GET") {
    return read(mmds, request);
  }
  if (request.method == "PUT") {
    return make_token(mmds, request);
  }
  Response response = failure(405, "GET and PUT are the only methods here.");
  response.extra = "Allow: GET, PUT\r\n";
  return response;
}

// The client is told, and then no more is heard from it.
HttpAnswer refuse(std::size_t size, unsigned status, std::string why) {
  return {.used = size, .close = true, .bytes = to_bytes(failure(status, std::move(why)), true, true)};
}

}  // namespace

HttpAnswer answer_guest(Mmds& mmds, std::string_view bytes, bool full) {
  const HttpParse parse = parse_http_request(bytes);
  switch (parse.status) {
    case HttpParse::Status::kIncomplete:
      return full ? refuse(bytes.size(), 431, "The request is too long.") : HttpAnswer{};
    case HttpParse::Status::kBad:
      return refuse(bytes.size(), 400, "This is no HTTP request.");
    case HttpParse::Status::kUnsupported:
      return refuse(bytes.size(), 501, "Only bodies of a given length are understood.");
    case HttpParse::Status::kWrongVersion:
      return refuse(bytes.size(), 505, "Only HTTP/1.0 and 1.1 are understood.");
    case HttpParse::Status::kComplete:
      break;
  }
  // Nothing here has a use for a body: it is passed over.
  if (bytes.size() - parse.head < parse.body) {
    return full ? refuse(bytes.size(), 413, "The request is too long.") : HttpAnswer{};
  }
  const HttpRequest& request = parse.request;
  const Response response = answer(mmds, request);
  return {.used = parse.head + parse.body,
          .close = !request.keep_alive,
          .bytes = to_bytes(response, !request.keep_alive, request.method != "HEAD")};
}

}  // namespace mayfly
