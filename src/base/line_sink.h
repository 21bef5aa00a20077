// Where lines of log and metrics go: a file, a FIFO or stderr, none of which may hold up the monitor.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// The longest line that a FIFO takes whole or not at all (pipe(7), PIPE_BUF).
inline constexpr std::size_t kAtomicLine = 4096;

// Opens `path` to append lines to, without ever blocking; it is made if need be, and emptied where `flags` is
// O_TRUNC. `role` names it in errors. A FIFO is opened for reading as well: this needs no reader to be there
// (fifo(7)), and none that leaves causes SIGPIPE; what it does not take is refused with EAGAIN. Of devices
// only terminals, /dev/null and its like are taken: a guest whose console went to another one would have a
// disk to write to, or the host's own log. Errors: kInvalidArgument for those, and for sockets.
Result<UniqueFd> open_line_file(const std::string& path, std::string_view role, int flags = 0);

// Writes by one write(2) to a descriptor in non-blocking mode; gives how many bytes of `text` were taken.
// Keeps errno. Async-signal-safe.
std::size_t write_once(int fd, std::string_view text);

// `fd` (stderr) once more, as a descriptor in non-blocking mode that others do not share: the mode of `fd`
// itself stays as it is, for it is theirs as well. For a terminal or a FIFO; none where `fd` is neither, or
// where it cannot be opened again (no /proc, or it is another user's), and write_shared() is what is left.
// `descriptors` is the folder of the process's descriptors.
UniqueFd reopen_for_lines(int fd, const std::string& descriptors = "/proc/self/fd");

// Finds out for good what stderr is, which write_shared() otherwise asks the kernel for each time: a call
// that a filter need not allow.
void remember_stderr();

// Writes to a descriptor that may be in blocking mode, and gives how many bytes of `text` (at most
// kAtomicLine) were taken. A terminal that has room promises to take one byte and no more, so it is asked
// before each. Only another writer that takes the room between the question and the write can make it wait,
// and then any signal with a handler ends that. Keeps errno. Async-signal-safe.
std::size_t write_shared(int fd, std::string_view text);

}  // namespace mayfly
