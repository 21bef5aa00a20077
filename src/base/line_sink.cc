#include "base/line_sink.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>

#include "base/file.h"

namespace mayfly {
namespace {

// Linux's Documentation/admin-guide/devices.txt: /dev/null and its like, where no write waits.
constexpr unsigned kMemoryDevices = 1;

bool has_room(int fd) {
  pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
  return ::poll(&ready, 1, 0) == 1 && (ready.revents & POLLOUT) != 0;
}

// Where write() takes all of `text` or nothing once there is room, or never waits: in one piece.
ssize_t write_shared_whole(int fd, const struct stat& status, std::string_view text) {
  if (S_ISSOCK(status.st_mode)) {
    return send_at_once(fd, text);
  }
  // A pipe with room takes PIPE_BUF bytes at least: pipe(7).
  return has_room(fd) ? ::write(fd, text.data(), text.size()) : -1;
}

ssize_t write_shared_by_byte(int fd, std::string_view text) {
  std::size_t written = 0;
  while (written < text.size() && has_room(fd) && ::write(fd, &text[written], 1) == 1) {
    ++written;
  }
  return static_cast<ssize_t>(written);
}

}  // namespace

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

UniqueFd reopen_for_lines(int fd, const std::string& descriptors) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) {
    return {};
  }
  // Each open of a pseudo-terminal's master side makes a new one: ptmx(4).
  const bool terminal = S_ISCHR(status.st_mode) && status.st_rdev != makedev(5, 2) && ::isatty(fd) == 1;
  if (!terminal && !S_ISFIFO(status.st_mode)) {
    return {};
  }
  return UniqueFd(
      ::open((descriptors + "/" + std::to_string(fd)).c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

std::size_t write_shared(int fd, std::string_view text) {
  const int saved_errno = errno;
  struct stat status {};
  ssize_t written = -1;
  if (::fstat(fd, &status) == 0) {
    const bool by_byte = S_ISCHR(status.st_mode) && major(status.st_rdev) != kMemoryDevices;
    written = by_byte ? write_shared_by_byte(fd, text) : write_shared_whole(fd, status, text);
  }
  errno = saved_errno;
  return written < 0 ? 0 : static_cast<std::size_t>(written);
}

}  // namespace mayfly
