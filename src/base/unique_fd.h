// A file descriptor that is closed when its owner goes.
#pragma once

#include <fcntl.h>
#include <sys/types.h>

#include <span>
#include <string>
#include <utility>

#include "base/result.h"

namespace mayfly {

// Owns one descriptor, or none (-1). Move-only. Raw descriptors stop here: factories give out UniqueFd,
// always with close-on-exec set. Not thread-safe: one owner.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  explicit operator bool() const { return valid(); }
  int release() { return std::exchange(fd_, -1); }
  void reset();

 private:
  int fd_ = -1;
};

// open(2) with O_CLOEXEC added; `role` names the file in the error ("kernel image"): "open kernel image /k:
// ...".
Result<UniqueFd> open_file(const std::string& path, int flags, std::string_view role, mode_t mode = 0600);

// fcntl(2) with F_DUPFD_CLOEXEC: the same open file, from a second owner on. `role` names it in the error.
Result<UniqueFd> duplicate(const UniqueFd& file, std::string_view role);

// Opens whichever of the descriptors 0 to 2 is closed, so that no file of the process's own ever takes the
// place of its standard input or output. What is opened is /dev/null, or where there is none, something that
// refuses reads and writes as a closed descriptor does. Call before anything else is opened.
Result<void> ensure_standard_descriptors();

// Closes every descriptor of the process but `kept`, ascending: whoever owns another one is wrong about it
// from then on. Errors: of the host's, which may lack close_range(2).
Result<void> close_all_but(std::span<const int> kept);

// eventfd(2), non-blocking.
Result<UniqueFd> make_eventfd();

}  // namespace mayfly
