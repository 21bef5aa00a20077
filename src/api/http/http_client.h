// The other end of the control API: one request to a UNIX socket, one answer.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace mayfly::api {

struct HttpAnswer {
  int status = 0;
  std::string body{};
};

// Whoever answers is not trusted: neither how long it takes nor how much it says.
struct HttpClientLimits {
  // From the connection to the answer's last byte.
  std::chrono::milliseconds timeout{10'000};
  // A longer body is an error.
  std::size_t max_body_bytes = std::size_t{16} << 20;
  // The process that has to listen at the socket, where that is known: another one is not spoken to.
  std::optional<pid_t> listener{};
};

// Every call has a connection of its own. Thread-safe: it holds nothing but the socket's path.
class HttpClient {
 public:
  explicit HttpClient(std::string socket_path, HttpClientLimits limits = {})
      : socket_path_(std::move(socket_path)), limits_(limits) {}

  // Sends `body` as JSON where there is one. An answer of any status is one; errors: the host's where nobody
  // answers at the socket; kPermission where another process than the wanted one listens there; kIo where the
  // time is over, and for an answer that is too long or no HTTP. The message names neither socket nor path.
  Result<HttpAnswer> call(const std::string& method, const std::string& path,
                          std::string_view body = {}) const;

 private:
  std::string socket_path_;
  HttpClientLimits limits_;
};

}  // namespace mayfly::api
