#include "mmds/http_request.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/http_text.h"
#include "base/text.h"

namespace mayfly {
namespace {

constexpr std::string_view kLineEnd = "\r\n";

bool is_visible(char character) {
  return character > ' ' && character != 0x7f;  // bytes above 0x7f are negative: not visible
}

// Takes what is in front of `separator` off `text`, and the separator; all of it where there is none.
std::string_view take_until(std::string_view& text, std::string_view separator) {
  const std::size_t end = text.find(separator);
  const std::string_view taken = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + separator.size());
  return taken;
}

// Whether a list such as "text/html, application/json;q=0.9" has `wanted`.
bool list_has(std::string_view list, std::string_view wanted) {
  while (!list.empty()) {
    std::string_view item = take_until(list, ",");
    if (equal_ignoring_case(trim_blanks(take_until(item, ";")), wanted)) {
      return true;
    }
  }
  return false;
}

// RFC 9112, 3.2: the origin form, or the absolute form, which a server must accept.
std::optional<std::string_view> path_of(std::string_view target) {
  constexpr std::string_view kScheme = "http://";
  if (equal_ignoring_case(target.substr(0, kScheme.size()), kScheme)) {
    target.remove_prefix(kScheme.size());
    const std::size_t start = target.find('/');
    target = start == std::string_view::npos ? "/" : target.substr(start);
  }
  if (!target.starts_with('/')) {
    return std::nullopt;
  }
  return target.substr(0, target.find_first_of("?#"));
}

class Parser {
 public:
  using Status = HttpParse::Status;

  // `text` is the header without its last, empty line.
  HttpParse run(std::string_view text) {
    if (start_line(take_until(text, kLineEnd))) {
      while (!text.empty() && field(take_until(text, kLineEnd))) {
      }
    }
    return result_;
  }

 private:
  bool refuse(Status status) {
    result_.status = status;
    return false;
  }

  bool start_line(std::string_view line) {
    HttpRequest& request = result_.request;
    request.method = take_until(line, " ");
    const std::string_view target = take_until(line, " ");
    const auto path = path_of(target);
    constexpr std::string_view kName = "HTTP/";
    if (!is_http_token(request.method) || !path || !std::ranges::all_of(target, is_visible) ||
        !line.starts_with(kName)) {
      return refuse(Status::kBad);
    }
    const std::string_view version = line.substr(kName.size());
    if (version != "1.1" && version != "1.0") {
      const bool sane =
          version.size() == 3 && version[1] == '.' && version.find(' ') == std::string_view::npos;
      return refuse(sane ? Status::kWrongVersion : Status::kBad);
    }
    request.path = *path;
    request.keep_alive = version == "1.1";
    result_.status = Status::kComplete;
    return true;
  }

  bool field(std::string_view line) {
    HttpRequest& request = result_.request;
    const std::size_t colon = line.find(':');
    const std::string_view name = line.substr(0, colon);
    if (colon == std::string_view::npos || !is_http_token(name) || !is_http_field_value(line)) {
      return refuse(Status::kBad);
    }
    const std::string_view value = trim_blanks(line.substr(colon + 1));
    const auto is = [name](std::string_view wanted) { return equal_ignoring_case(name, wanted); };
    if (is("Content-Length")) {
      return content_length(value);
    }
    if (is("Transfer-Encoding")) {
      return refuse(Status::kUnsupported);
    }
    if (is("Connection")) {
      request.keep_alive = (request.keep_alive || list_has(value, "keep-alive")) && !list_has(value, "close");
    } else if (is("Accept")) {
      request.accepts_json = request.accepts_json || list_has(value, "application/json");
    } else if (is("X-Forwarded-For")) {
      request.forwarded = true;
    } else if (is("X-metadata-token") || is("X-aws-ec2-metadata-token")) {
      request.token = value;
    } else if (is("X-metadata-token-ttl-seconds") || is("X-aws-ec2-metadata-token-ttl-seconds")) {
      request.ttl = value;
      request.ttl_header = name;
    }
    return true;
  }

  bool content_length(std::string_view value) {
    const bool decimal = std::ranges::all_of(value, [](char digit) { return digit >= '0' && digit <= '9'; });
    const auto length = decimal ? parse_integer<std::uint32_t>(value) : std::nullopt;
    if (!length || (has_length_ && result_.body != *length)) {
      return refuse(Status::kBad);
    }
    has_length_ = true;
    result_.body = *length;
    return true;
  }

  HttpParse result_;
  bool has_length_ = false;
};

}  // namespace

HttpParse parse_http_request(std::string_view bytes) {
  // RFC 9112, 2.2: empty lines in front are to be passed over.
  std::size_t start = 0;
  while (bytes.substr(start).starts_with(kLineEnd)) {
    start += kLineEnd.size();
  }
  const std::string_view text = bytes.substr(start);
  const std::size_t end = text.find("\r\n\r\n");
  if (end == std::string_view::npos) {
    return {};
  }
  HttpParse result = Parser().run(text.substr(0, end));
  result.head = start + end + 4;
  return result;
}

}  // namespace mayfly
