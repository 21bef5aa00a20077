#include "api/http/http_client.h"

#include <httplib.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>

#include "base/unique_fd.h"

namespace mayfly::api {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Status line and headers of an answer, and what announces the pieces of a chunked one.
constexpr std::size_t kMaxHeadBytes = 65536;

// A connected socket whose reads and writes end when the time is over. What went wrong is kept: the library
// only knows that something did.
class BoundedStream final : public httplib::Stream {
 public:
  BoundedStream(UniqueFd fd, SteadyClock::time_point deadline, std::size_t max_bytes)
      : fd_(std::move(fd)), deadline_(deadline), left_(max_bytes) {}

  bool is_readable() const override { return wait(POLLIN); }
  bool is_writable() const override { return wait(POLLOUT); }

  ssize_t read(char* destination, size_t size) override {
    // The library reads lines byte by byte.
    if (next_ == filled_ && !fill()) {
      return failed_ ? -1 : 0;
    }
    const std::size_t count = std::min(size, filled_ - next_);
    std::memcpy(destination, buffer_.data() + next_, count);
    next_ += count;
    return static_cast<ssize_t>(count);
  }

  ssize_t write(const char* source, size_t size) override {
    while (wait(POLLOUT)) {
      const ssize_t count = ::send(fd_.get(), source, size, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count >= 0) {
        return count;
      }
      if (errno != EINTR && errno != EAGAIN) {
        return give_up(Error::from_errno(errno, "send the request"));
      }
    }
    return -1;
  }

  void get_remote_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  void get_local_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  socket_t socket() const override { return fd_.get(); }

  const std::optional<Error>& failed() const { return failed_; }

 private:
  bool wait(short events) const {
    for (;;) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - SteadyClock::now()).count();
      pollfd ready{.fd = fd_.get(), .events = events, .revents = 0};
      const int count = left <= 0 ? 0 : ::poll(&ready, 1, static_cast<int>(std::min<long>(left, 60'000)));
      if (count > 0) {
        return true;
      }
      if (left <= 0) {
        give_up(Error(ErrorCode::kIo, "it did not answer in time"));
        return false;
      }
      if (count < 0 && errno != EINTR) {
        give_up(Error::from_errno(errno, "wait for the answer"));
        return false;
      }
    }
  }

  bool fill() {
    if (left_ == 0) {
      give_up(Error(ErrorCode::kIo, "its answer is too long"));
      return false;
    }
    while (wait(POLLIN)) {
      const ssize_t count = ::recv(fd_.get(), buffer_.data(), std::min(buffer_.size(), left_), MSG_DONTWAIT);
      if (count >= 0) {
        next_ = 0;
        filled_ = static_cast<std::size_t>(count);
        left_ -= filled_;
        return count > 0;
      }
      if (errno != EINTR && errno != EAGAIN) {
        give_up(Error::from_errno(errno, "read the answer"));
        return false;
      }
    }
    return false;
  }

  ssize_t give_up(Error error) const {
    if (!failed_) {
      failed_ = std::move(error);
    }
    return -1;
  }

  UniqueFd fd_;
  SteadyClock::time_point deadline_;
  std::size_t left_;  // bytes that may still come
  std::array<char, 4096> buffer_{};
  std::size_t next_ = 0;
  std::size_t filled_ = 0;
  mutable std::optional<Error> failed_;
};

// Only the library's writing of one request and reading of one answer are used: it never has a socket.
class Exchange final : public httplib::ClientImpl {
 public:
  Exchange() : httplib::ClientImpl("localhost") {}

  bool process(httplib::Stream& stream, httplib::Request& request, httplib::Response& response) {
    auto error = httplib::Error::Success;
    return process_request(stream, request, response, true, error);
  }
};

Result<UniqueFd> connect_to(const std::string& path, std::chrono::milliseconds timeout) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path) || path.find('\0') != std::string::npos) {
    return fail(ErrorCode::kInvalidArgument,
                "a socket's path has 1 to " + std::to_string(sizeof(address.sun_path) - 1) + " characters");
  }
  path.copy(address.sun_path, path.size());
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

}  // namespace

Result<HttpAnswer> HttpClient::call(const std::string& method, const std::string& path,
                                    std::string_view body) const {
  const auto deadline = SteadyClock::now() + limits_.timeout;
  MAYFLY_TRY_ASSIGN(UniqueFd fd, connect_to(socket_path_, limits_.timeout));
  BoundedStream stream(std::move(fd), deadline, limits_.max_body_bytes + kMaxHeadBytes);
  httplib::Request request;
  request.method = method;
  request.path = path;
  request.body = body;
  if (!body.empty()) {
    request.set_header("Content-Type", "application/json");
  }
  httplib::Response response;
  bool done = false;
  // What the library throws for a hostile answer is as good as its refusal.
  try {
    Exchange exchange;
    // Never more is kept than was allowed, whatever length the answer announces.
    request.content_receiver = [&](const char* data, size_t size, uint64_t /*offset*/, uint64_t /*total*/) {
      if (response.body.size() + size > limits_.max_body_bytes) {
        return false;
      }
      response.body.append(data, size);
      return true;
    };
    request.set_header("User-Agent", "mayfly");
    done = exchange.process(stream, request, response);
  } catch (...) {
    done = false;
  }
  if (!done) {
    return stream.failed() ? Result<HttpAnswer>(tl::make_unexpected(*stream.failed()))
                           : fail(ErrorCode::kIo, "its answer is too long, cut off, or no HTTP");
  }
  return HttpAnswer{.status = response.status, .body = std::move(response.body)};
}

}  // namespace mayfly::api
