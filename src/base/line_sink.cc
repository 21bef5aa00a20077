#include "base/line_sink.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>

namespace mayfly {

Result<UniqueFd> open_line_file(const std::string& path, std::string_view role) {
  return open_file(path, O_RDWR | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY, role, 0600);
}

std::size_t write_once(int fd, std::string_view text) {
  const int saved_errno = errno;
  ssize_t written = -1;
  do {
    written = ::write(fd, text.data(), text.size());
  } while (written < 0 && errno == EINTR);
  errno = saved_errno;
  return written < 0 ? 0 : static_cast<std::size_t>(written);
}

std::size_t write_once_if_ready(int fd, std::string_view text) {
  const int saved_errno = errno;
  pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
  const bool has_room = ::poll(&ready, 1, 0) == 1 && (ready.revents & POLLOUT) != 0;
  errno = saved_errno;
  return has_room ? write_once(fd, text) : 0;
}

}  // namespace mayfly
