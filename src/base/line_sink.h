// Where lines of log and metrics go: a file or a FIFO that must never hold up the monitor.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// The longest line that a FIFO takes whole or not at all (pipe(7), PIPE_BUF).
inline constexpr std::size_t kAtomicLine = 4096;

// Opens `path` to append lines to, without ever blocking; it is made if need be. `role` names it in errors. A
// FIFO is opened for reading as well: this needs no reader to be there (fifo(7)), and none that leaves causes
// SIGPIPE; what it does not take is refused with EAGAIN.
Result<UniqueFd> open_line_file(const std::string& path, std::string_view role);

// Writes by one write(2) to a descriptor in non-blocking mode; gives how many bytes of `text` were taken.
// Keeps errno. Async-signal-safe.
std::size_t write_once(int fd, std::string_view text);

// The same to a descriptor that may be in blocking mode (stderr, which is shared with others and so must not
// be changed): looks whether there is room first. `text` is at most kAtomicLine.
std::size_t write_once_if_ready(int fd, std::string_view text);

}  // namespace mayfly
