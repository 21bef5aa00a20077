#include "base/unique_fd.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

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

Result<UniqueFd> duplicate(const UniqueFd& file, std::string_view role) {
  UniqueFd copy(::fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) {
    return fail_errno(errno, std::string("duplicate the descriptor of ").append(role));
  }
  return copy;
}

Result<void> ensure_standard_descriptors() {
  for (int standard = 0; standard <= 2; ++standard) {
    if (::fcntl(standard, F_GETFD) >= 0) {
      continue;
    }
    // The lowest number that is free is the one that was found to be. Not close-on-exec: it stands for one
    // that is inherited.
    int fd = ::open("/dev/null", O_RDWR);
    if (fd < 0) {
      fd = ::open("/", O_PATH);
    }
    if (fd != standard) {
      const int error = fd < 0 ? errno : EBADF;
      const UniqueFd closes(fd);
      return fail_errno(error, "open something in place of descriptor " + std::to_string(standard));
    }
  }
  return {};
}

Result<void> close_all_but(std::span<const int> kept) {
  const auto close_range = [](unsigned first, unsigned last) -> Result<void> {
    if (first <= last && ::syscall(SYS_close_range, first, last, 0U) != 0) {
      return fail_errno(errno, "close descriptors");
    }
    return {};
  };
  unsigned from = 0;
  for (const int fd : kept) {
    const auto number = static_cast<unsigned>(fd);
    if (number > from) {
      MAYFLY_TRY(close_range(from, number - 1));
    }
    from = number + 1;
  }
  return close_range(from, UINT_MAX);
}

Result<UniqueFd> make_eventfd() {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) {
    return fail_errno(errno, "create an eventfd");
  }
  return UniqueFd(fd);
}

}  // namespace mayfly
