#include "base/unique_fd.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

namespace mayfly {

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void UniqueFd::reset() {
  if (fd_ >= 0) {
    // Linux releases the descriptor even where close() reports an error; a second try could close another's.
    ::close(std::exchange(fd_, -1));
  }
}

Result<UniqueFd> UniqueFd::duplicate() const {
  const int fd = ::fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) {
    return fail_errno(errno, "duplicate a descriptor");
  }
  return UniqueFd(fd);
}

Result<UniqueFd> open_file(const std::string& path, int flags, std::string_view role, mode_t mode) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    return fail_errno(errno, std::string("open ").append(role).append(" ").append(path));
  }
  return UniqueFd(fd);
}

Result<UniqueFd> make_eventfd() {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) {
    return fail_errno(errno, "create an eventfd");
  }
  return UniqueFd(fd);
}

}  // namespace mayfly
