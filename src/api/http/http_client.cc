#include "api/http/http_client.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <utility>

#include "base/text.h"
#include "base/unique_fd.h"

namespace mayfly::api {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Status line and headers of an answer.
constexpr std::size_t kMaxHeadBytes = 65536;

constexpr std::string_view kProtocol = "HTTP/1.";

// A connected socket whose reads and writes end when the time is over.
class BoundedStream {
 public:
  BoundedStream(UniqueFd fd, SteadyClock::time_point deadline) : fd_(std::move(fd)), deadline_(deadline) {}

  Result<void> send(std::string_view text) {
    while (!text.empty()) {
      MAYFLY_TRY(wait(POLLOUT));
      const ssize_t count = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count < 0 && errno != EINTR && errno != EAGAIN) {
        return fail_errno(errno, "send the request");
      }
      text.remove_prefix(static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
    }
    return {};
  }

  // Appends what has come; false where nothing more will.
  Result<bool> receive(std::string& text) {
    std::array<char, 4096> buffer;
    for (;;) {
      MAYFLY_TRY(wait(POLLIN));
      const ssize_t count = ::recv(fd_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (count >= 0) {
        text.append(buffer.data(), static_cast<std::size_t>(count));
        return count > 0;
      }
      if (errno != EINTR && errno != EAGAIN) {
        return fail_errno(errno, "read the answer");
      }
    }
  }

 private:
  Result<void> wait(short events) const {
    for (;;) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - SteadyClock::now()).count();
      if (left <= 0) {
        return fail(ErrorCode::kIo, "it did not answer in time");
      }
      pollfd ready{.fd = fd_.get(), .events = events, .revents = 0};
      const int count = ::poll(&ready, 1, static_cast<int>(std::min<std::int64_t>(left, 60'000)));
      if (count > 0) {
        return {};
      }
      if (count < 0 && errno != EINTR) {
        return fail_errno(errno, "wait for the answer");
      }
    }
  }

  UniqueFd fd_;
  SteadyClock::time_point deadline_;
};

tl::unexpected<Error> no_http() {
  return fail(ErrorCode::kIo, "its answer is cut off, or no HTTP");
}
tl::unexpected<Error> too_long() {
  return fail(ErrorCode::kIo, "its answer is too long");
}

bool is_same_name(std::string_view name, std::string_view lower_case) {
  return std::ranges::equal(name, lower_case, [](char left, char right) {
    return (left >= 'A' && left <= 'Z' ? left - 'A' + 'a' : left) == right;
  });
}

// What the status line and the headers say (RFC 9112, 4 and 6).
struct AnswerHead {
  int status = 0;
  std::optional<std::size_t> length;  // absent: up to the connection's end
};

// `text` ends behind the last header's line.
Result<AnswerHead> read_head(std::string_view text) {
  AnswerHead head;
  // "HTTP/1.1 200 OK"
  if (text.size() < 12 || !text.starts_with(kProtocol) || text[8] != ' ') {
    return no_http();
  }
  head.status = parse_integer<int>(text.substr(9, 3)).value_or(0);
  if (head.status < 100) {
    return no_http();
  }
  text.remove_prefix(text.find("\r\n") + 2);
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find("\r\n"));
    text.remove_prefix(line.size() + 2);
    const std::string_view name = line.substr(0, line.find(':'));
    std::string_view value = line.substr(std::min(line.size(), name.size() + 1));
    value.remove_prefix(std::min(value.size(), value.find_first_not_of(" \t")));
    if (is_same_name(name, "transfer-encoding")) {
      return fail(ErrorCode::kIo, "its answer comes in chunks, which a monitor's never does");
    }
    if (is_same_name(name, "content-length")) {
      head.length = parse_integer<std::size_t>(value);
      if (!head.length) {
        return no_http();
      }
    }
  }
  return head;
}

Result<UniqueFd> connect_to(const std::string& path, std::chrono::milliseconds timeout) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.find('\0') != std::string::npos) {
    return fail(ErrorCode::kInvalidArgument, "a socket's path is not empty and holds no NUL");
  }
  // A path that is too long for an address (another process's folder in front of one that was not) is gone
  // through by a descriptor (O_PATH, open(2)).
  UniqueFd place;
  std::string name = path;
  if (name.size() >= sizeof(address.sun_path)) {
    MAYFLY_TRY_ASSIGN(place, open_file(path, O_PATH, "API socket"));
    name = "/proc/self/fd/" + std::to_string(place.get());
  }
  name.copy(address.sun_path, name.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) {
    return fail_errno(errno, "make a socket");
  }
  // How long connect() waits for a place in the queue of a server that accepts nobody (unix(7), socket(7)).
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout);
  const timeval patience{.tv_sec = seconds.count(), .tv_usec = (timeout - seconds).count() * 1000};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  // SAFETY: the socket calls take every family's address by this type.
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return errno == EAGAIN ? Result<UniqueFd>(fail(ErrorCode::kIo, "it did not answer in time"))
                           : fail_errno(errno, "connect");
  }
  return fd;
}

// The kernel's word for who listens at the other end (unix(7), SO_PEERCRED).
Result<void> check_listener(const UniqueFd& fd, pid_t wanted) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return fail_errno(errno, "find out who listens");
  }
  if (peer.pid != wanted) {
    return fail(ErrorCode::kPermission, "it is the socket of process " + std::to_string(peer.pid));
  }
  return {};
}

}  // namespace

Result<HttpAnswer> HttpClient::call(const std::string& method, const std::string& path,
                                    std::string_view body) const {
  const auto deadline = SteadyClock::now() + limits_.timeout;
  MAYFLY_TRY_ASSIGN(UniqueFd fd, connect_to(socket_path_, limits_.timeout));
  if (limits_.listener) {
    MAYFLY_TRY(check_listener(fd, *limits_.listener));
  }
  BoundedStream stream(std::move(fd), deadline);
  std::string request = method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
  if (!body.empty()) {
    request.append("Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
                   "\r\n");
  }
  MAYFLY_TRY(stream.send(request.append("\r\n").append(body)));

  constexpr std::string_view kEndOfHead = "\r\n\r\n";
  std::string text;
  std::size_t end = std::string::npos;
  while ((end = text.find(kEndOfHead)) == std::string::npos) {
    if (text.size() > kMaxHeadBytes) {
      return too_long();
    }
    if (text.size() >= kProtocol.size() && !text.starts_with(kProtocol)) {
      return no_http();  // whoever speaks first and otherwise may wait for more
    }
    MAYFLY_TRY_ASSIGN(const bool more, stream.receive(text));
    if (!more) {
      return no_http();
    }
  }
  MAYFLY_TRY_ASSIGN(const AnswerHead head, read_head(std::string_view(text).substr(0, end + 2)));
  text.erase(0, end + kEndOfHead.size());
  const std::optional<std::size_t> length = head.status == 204 ? std::optional<std::size_t>(0) : head.length;
  if (length.value_or(0) > limits_.max_body_bytes) {
    return too_long();
  }
  while (!length || text.size() < *length) {
    MAYFLY_TRY_ASSIGN(const bool more, stream.receive(text));
    if (text.size() > limits_.max_body_bytes) {
      return too_long();
    }
    if (!more && length) {
      return no_http();
    }
    if (!more) {
      break;
    }
  }
  text.resize(std::min(text.size(), length.value_or(text.size())));
  return HttpAnswer{.status = head.status, .body = std::move(text)};
}

}  // namespace mayfly::api
