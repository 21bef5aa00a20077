#include "base/line_sink.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "base/file.h"

namespace mayfly {
namespace {

// Linux's Documentation/admin-guide/devices.txt: /dev/null and its like, where no write waits, but also
// /dev/mem and /dev/kmsg.
constexpr unsigned kMemoryDevices = 1;

enum class SharedKind : std::uint8_t { kUnknown, kSocket, kWhole, kByByte };
constinit std::atomic<SharedKind> g_stderr_kind{SharedKind::kUnknown};

SharedKind kind_of(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) {
    return SharedKind::kUnknown;
  }
  if (S_ISCHR(status.st_mode) && major(status.st_rdev) != kMemoryDevices) {
    return SharedKind::kByByte;
  }
  return S_ISSOCK(status.st_mode) ? SharedKind::kSocket : SharedKind::kWhole;
}

bool has_room(int fd) {
  pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
  return ::poll(&ready, 1, 0) == 1 && (ready.revents & POLLOUT) != 0;
}

// Where write() takes all of `text` or nothing once there is room, or never waits: in one piece.
ssize_t write_shared_whole(int fd, std::string_view text) {
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

// /dev/null, /dev/zero, /dev/full.
bool is_null_device(const struct stat& status) {
  const unsigned number = minor(status.st_rdev);
  return S_ISCHR(status.st_mode) && major(status.st_rdev) == kMemoryDevices &&
         (number == 3 || number == 5 || number == 7);
}

// Nothing more than a look: to open some devices does something already (a watchdog's starts it).
bool is_no_output(const struct stat& status) {
  constexpr unsigned kMiscDevices = 10;  // as kMemoryDevices: no terminal is among them
  const unsigned number = major(status.st_rdev);
  return S_ISBLK(status.st_mode) || S_ISSOCK(status.st_mode) ||
         (S_ISCHR(status.st_mode) && (number == kMemoryDevices || number == kMiscDevices) &&
          !is_null_device(status));
}

}  // namespace

Result<UniqueFd> open_line_file(const std::string& path, std::string_view role, int flags) {
  const auto refuse = [&] {
    return fail(ErrorCode::kInvalidArgument,
                std::string(role).append(" ").append(path).append(
                    ": can be a file, a FIFO, a terminal or /dev/null, and no other device or socket"));
  };
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && is_no_output(status)) {
    return refuse();
  }
  MAYFLY_TRY_ASSIGN(UniqueFd file,
                    open_file(path, flags | O_RDWR | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY, role, 0600));
  // What is there by now.
  if (::fstat(file.get(), &status) != 0) {
    return fail_errno(errno, std::string("look at ").append(role).append(" ").append(path));
  }
  const bool is_device = S_ISCHR(status.st_mode) && !is_null_device(status);
  if (is_no_output(status) || (is_device && ::isatty(file.get()) != 1)) {
    return refuse();
  }
  return file;
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

void remember_stderr() {
  g_stderr_kind.store(kind_of(STDERR_FILENO), std::memory_order_relaxed);
}

std::size_t write_shared(int fd, std::string_view text) {
  const int saved_errno = errno;
  ssize_t written = -1;
  const SharedKind known =
      fd == STDERR_FILENO ? g_stderr_kind.load(std::memory_order_relaxed) : SharedKind::kUnknown;
  switch (known == SharedKind::kUnknown ? kind_of(fd) : known) {
    case SharedKind::kUnknown:
      break;
    case SharedKind::kSocket:
      written = send_at_once(fd, text);
      break;
    case SharedKind::kWhole:
      written = write_shared_whole(fd, text);
      break;
    case SharedKind::kByByte:
      written = write_shared_by_byte(fd, text);
      break;
  }
  errno = saved_errno;
  return written < 0 ? 0 : static_cast<std::size_t>(written);
}

}  // namespace mayfly
