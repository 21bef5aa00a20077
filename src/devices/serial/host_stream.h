// A descriptor that somebody else may share, read and written without ever waiting.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// One direction of a descriptor given to the process (stdin, stdout, a FIFO, a socket). O_NONBLOCK is a
// property of the open file description, which the shell and its other children share: set there it would
// break them, and they could clear it. So the stream makes a description of its own where it can, and asks
// per call where it cannot:
//  - terminals, pipes and FIFOs, the memory devices (/dev/null): opened again through /proc/self/fd,
//    O_NONBLOCK;
//  - sockets: MSG_DONTWAIT on each call;
//  - regular files and block devices: the description is shared on purpose, as its offset and O_APPEND
//    belong to whoever redirected the output; such files do not wait for a reader;
//  - all others, and where opening again is refused (no /proc in a jail, a terminal of another user):
//    poll(2) first, and then no more than what cannot wait once poll has said yes. There, another process
//    that fills the same pipe between the two calls can make the write wait for the reader: the one case
//    that is left.
//
// Not thread-safe. SIGPIPE must be ignored by the process (Console sees to it).
class HostStream {
 public:
  enum class Direction : std::uint8_t { kInput, kOutput };
  enum class Access : std::uint8_t { kOwnDescription, kSocket, kFile, kPolled };

  HostStream() = default;
  // Does not take `fd`, which may be closed afterwards. Errors: kIo (EBADF) for a descriptor that is not
  // open, or not open for this direction, as one of O_PATH is for neither; those of fstat and dup.
  // `descriptors` is where the process finds its own descriptors by number.
  static Result<HostStream> open(int fd, Direction direction, const char* descriptors = "/proc/self/fd");

  // As read(2) and write(2), but a negative errno instead of -1 (-EAGAIN: nothing possible now), and called
  // again after EINTR.
  ssize_t read(std::span<std::uint8_t> data);
  ssize_t write(std::span<const std::uint8_t> data);

  bool valid() const { return fd_.valid(); }
  int fd() const { return fd_.get(); }
  Access access() const { return access_; }
  bool is_terminal() const { return terminal_; }

 private:
  // How many of `size` bytes can be transferred without waiting; 0 for none.
  std::size_t ready(short events, std::size_t size) const;

  UniqueFd fd_;
  Access access_ = Access::kPolled;
  bool terminal_ = false;
};

}  // namespace mayfly
