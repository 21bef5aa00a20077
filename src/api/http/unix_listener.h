// A listening AF_UNIX socket with a file of its own, for this user alone.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly::api {

// Owns the socket and its file; removes the file at its end, unless another has taken its place. Move-only,
// one thread at a time.
class UnixListener {
 public:
  // How many clients wait to be accepted, but for one; one more has to wait in connect().
  static constexpr int kBacklog = 64;

  // Makes the socket at `path` with mode 0600, whatever the umask, and listens: the mode is set before
  // anybody can connect, and connections wait from then on until they are accepted. The descriptor is
  // non-blocking. Errors: kInvalidArgument for a path that is empty, too long for a socket (107 bytes) or
  // holds a NUL; kBusy where something is at `path` already (it names the path, whether it is a socket in
  // use, one left over, which a try to connect tells, or another file, and what to do); the host's own
  // otherwise. What was at `path` stays, and nothing is added.
  static Result<UnixListener> bind(const std::string& path);

  UnixListener(UnixListener&& other) noexcept;
  UnixListener& operator=(UnixListener&& other) noexcept;
  UnixListener(const UnixListener&) = delete;
  UnixListener& operator=(const UnixListener&) = delete;
  ~UnixListener();

  // Nobody can connect any more, and the file is gone. Who waits to be accepted still can be.
  void close_entrance() noexcept;

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

 private:
  UnixListener(UniqueFd fd, std::string path, dev_t device, ino_t inode)
      : fd_(std::move(fd)), path_(std::move(path)), device_(device), inode_(inode) {}
  void remove_file() noexcept;

  UniqueFd fd_;
  std::string path_;  // empty once it is moved from
  dev_t device_;      // which file is ours
  ino_t inode_;
};

}  // namespace mayfly::api
