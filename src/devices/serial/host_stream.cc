#include "devices/serial/host_stream.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <string>
#include <string_view>
#include <utility>

#include "base/file.h"

namespace mayfly {
namespace {

template <typename Call>
ssize_t repeat_interrupted(Call call) {
  ssize_t result = 0;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

// Whether opening the same inode again gives another description of the same stream. Not so for a device that
// makes a new instance at each open, as the master side of a pseudo-terminal does.
bool can_be_opened_again(const struct stat& status, bool terminal) {
  constexpr unsigned kMemoryDevices = 1;  // Linux's Documentation/admin-guide/devices.txt
  const dev_t ptmx = makedev(5, 2);
  if (S_ISFIFO(status.st_mode)) {
    return true;
  }
  return S_ISCHR(status.st_mode) &&
         ((terminal && status.st_rdev != ptmx) || major(status.st_rdev) == kMemoryDevices);
}

}  // namespace

Result<HostStream> HostStream::open(int fd, Direction direction, const char* descriptors) {
  const char* const doing = direction == Direction::kInput ? "use serial input" : "use serial output";
  const int flags = ::fcntl(fd, F_GETFL);
  struct stat status {};
  if (flags < 0 || ::fstat(fd, &status) != 0) {
    return fail_errno(errno, doing);
  }
  const int mode = flags & O_ACCMODE;
  if ((flags & O_PATH) != 0 || mode == (direction == Direction::kInput ? O_WRONLY : O_RDONLY)) {
    return fail_errno(EBADF, doing);
  }
  HostStream stream;
  stream.terminal_ = ::isatty(fd) == 1;
  if (can_be_opened_again(status, stream.terminal_)) {
    const int open_mode = direction == Direction::kInput ? O_RDONLY : O_WRONLY;
    stream.fd_ = UniqueFd(::open((std::string(descriptors) + "/" + std::to_string(fd)).c_str(),
                                 open_mode | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    stream.access_ = Access::kOwnDescription;
  }
  if (!stream.fd_.valid()) {
    stream.fd_ = UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!stream.fd_.valid()) {
      return fail_errno(errno, doing);
    }
    stream.access_ = S_ISSOCK(status.st_mode)                             ? Access::kSocket
                     : S_ISREG(status.st_mode) || S_ISBLK(status.st_mode) ? Access::kFile
                                                                          : Access::kPolled;
  }
  return stream;
}

ssize_t HostStream::read(std::span<std::uint8_t> data) {
  // A read waits only where there is nothing at all.
  if ((access_ == Access::kPolled || access_ == Access::kSocket) && ready(POLLIN, data.size()) == 0) {
    return -EAGAIN;
  }
  return repeat_interrupted([&] { return ::read(fd_.get(), data.data(), data.size()); });
}

ssize_t HostStream::write(std::span<const std::uint8_t> data) {
  if (access_ == Access::kSocket) {
    // SAFETY: bytes are read as characters.
    const std::string_view bytes(reinterpret_cast<const char*>(data.data()), data.size());
    return repeat_interrupted([&] { return send_at_once(fd_.get(), bytes); });
  }
  std::size_t size = data.size();
  if (access_ == Access::kPolled) {
    size = ready(POLLOUT, size);
    if (size == 0) {
      return -EAGAIN;
    }
  }
  return repeat_interrupted([&] { return ::write(fd_.get(), data.data(), size); });
}

std::size_t HostStream::ready(short events, std::size_t size) const {
  struct pollfd descriptor {
    fd_.get(), events, 0
  };
  if (::poll(&descriptor, 1, 0) <= 0) {
    return 0;
  }
  // A writable pipe takes PIPE_BUF bytes at least (pipe(7)); of a terminal only one byte is certain.
  return std::min<std::size_t>(size, terminal_ ? 1 : PIPE_BUF);
}

}  // namespace mayfly
