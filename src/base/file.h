// Reading and writing files whole.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// Fills `destination` with what `file` holds from `offset` bytes on, and answers how many bytes that were:
// fewer than asked for only where the file ends. Only the kernel writes to `destination`, so that it may be
// guest RAM. The file's own offset is neither used nor moved. `role` names the file in errors.
Result<std::size_t> read_at(const UniqueFd& file, std::uint64_t offset, iovec destination,
                            std::string_view role);

// The same past the page cache, where the file system can (O_DIRECT): what is read is not copied, and takes
// no place there. What the cache has is read from the disk all the same. For the time of the call nobody else
// may use the open file `file`: it has that flag for a while. `offset`, `destination` and its size are
// multiples of 4 KiB; others are read through the cache.
Result<std::size_t> read_past_cache(const UniqueFd& file, std::uint64_t offset, iovec destination,
                                    std::string_view role);

// send(2) to a socket of what it takes at once, without SIGPIPE, by the call that also gathers pieces: one
// system call fewer that a filter has to allow. Async-signal-safe.
ssize_t send_at_once(int socket, std::string_view bytes);

// Writes all of `source` to `file` from `offset` bytes on. Only the kernel reads `source`, so that it may be
// guest RAM. The file's own offset is neither used nor moved. `role` names the file in errors; one of a file
// system that is full is kExhausted. After an error any part may have been written.
Result<void> write_at(const UniqueFd& file, std::uint64_t offset, iovec source, std::string_view role);

// The contents of `path`, a file or FIFO of at most `limit` bytes; more is kOutOfRange. `role` names the file
// in errors.
Result<std::string> read_file(const std::string& path, std::string_view role, std::size_t limit);

}  // namespace mayfly
