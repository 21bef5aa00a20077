#include "api/http/unix_listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace mayfly::api {
namespace {

constexpr mode_t kMode = 0600;

// What a client gets who connects to the socket at `address`: 0, or an errno.
int try_connecting(const sockaddr_un& address) {
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // SAFETY: the socket calls take every family's address by this type.
  const auto* const there = reinterpret_cast<const sockaddr*>(&address);
  return fd && ::connect(fd.get(), there, sizeof(address)) == 0 ? 0 : errno;
}

// What is there is never removed: it may be the way to a microVM that runs.
tl::unexpected<Error> path_is_taken(const std::string& path, const sockaddr_un& address) {
  const auto taken = [&path](const std::string& what) {
    return fail(ErrorCode::kBusy, "API socket " + path + ": " + what);
  };
  struct stat there {};
  if (::lstat(path.c_str(), &there) != 0 || !S_ISSOCK(there.st_mode)) {
    return taken("a file is there already, and no socket; name another path");
  }
  switch (try_connecting(address)) {
    case 0:
    case EAGAIN:  // a listener with many who wait
      return taken("another process serves a socket there; name another path, or end that process first");
    case ECONNREFUSED:
      return taken(
          "a socket is there already at which nobody listens, left over by a process that has ended; remove "
          "the file, or name another path");
    default:
      return taken(
          "a socket is there already, and whether anybody listens there cannot be found out; name another "
          "path, or remove the file if nobody does");
  }
}

}  // namespace

Result<UnixListener> UnixListener::bind(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path) || path.find('\0') != std::string::npos) {
    return fail(ErrorCode::kInvalidArgument, "API socket " + path + ": a socket's path has 1 to " +
                                                 std::to_string(sizeof(address.sun_path) - 1) +
                                                 " characters");
  }
  path.copy(address.sun_path, path.size());

  const std::string doing = "make API socket " + path;
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) {
    return fail_errno(errno, doing);
  }
  // bind() gives the file the mode of the socket (unix(7)), so that it never has another; the umask, which is
  // the whole process's, stays as it is.
  if (::fchmod(fd.get(), kMode) != 0) {
    return fail_errno(errno, doing);
  }
  // SAFETY: the socket calls take every family's address by this type.
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return errno == EADDRINUSE ? Result<UnixListener>(path_is_taken(path, address))
                               : fail_errno(errno, doing);
  }
  struct stat made {};
  if (::lstat(path.c_str(), &made) != 0) {
    return fail_errno(errno, doing);
  }
  UnixListener listener(std::move(fd), path, made.st_dev, made.st_ino);
  // Connections are refused until here.
  if ((made.st_mode & ACCESSPERMS) != kMode && ::chmod(path.c_str(), kMode) != 0) {
    return fail_errno(errno, doing);
  }
  if (::listen(listener.fd(), kBacklog) != 0) {
    return fail_errno(errno, doing);
  }
  return listener;
}

UnixListener::UnixListener(UnixListener&& other) noexcept
    : fd_(std::move(other.fd_)),
      path_(std::exchange(other.path_, {})),
      device_(other.device_),
      inode_(other.inode_) {}

UnixListener& UnixListener::operator=(UnixListener&& other) noexcept {
  if (this != &other) {
    remove_file();
    fd_ = std::move(other.fd_);
    path_ = std::exchange(other.path_, {});
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

UnixListener::~UnixListener() {
  remove_file();
}

void UnixListener::close_entrance() noexcept {
  remove_file();
  path_.clear();
  ::shutdown(fd_.get(), SHUT_RD);
}

void UnixListener::remove_file() noexcept {
  if (path_.empty()) {
    return;
  }
  // While the descriptor is open, the file's inode cannot be another's.
  struct stat there {};
  if (::lstat(path_.c_str(), &there) == 0 && there.st_dev == device_ && there.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
}

}  // namespace mayfly::api
