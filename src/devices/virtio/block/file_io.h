// Whole transfers and changes of a file's ranges, waited for.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "devices/virtio/block/io_engine.h"

namespace mayfly::file_io {

// Read and write all the buffers; both change the array as they go. A file that ends too early is ENODATA.
IoResult read_all(int fd, std::span<iovec> buffers, std::uint64_t offset);
IoResult write_all(int fd, std::span<iovec> buffers, std::uint64_t offset, bool durable);

// Passes over the first `bytes` of the buffers: what is left of them.
std::span<iovec> advance(std::span<iovec> buffers, std::size_t bytes);

IoResult flush(int fd);
// Gives the range's storage back; it reads as zeroes then.
IoResult punch_hole(int fd, std::uint64_t offset, std::uint64_t length);
// Makes the range zeroes, by writing them where the file system knows no better way.
IoResult zero_range(int fd, std::uint64_t offset, std::uint64_t length);
IoResult write_zeroes(int fd, std::uint64_t offset, std::uint64_t length);

// Does what an engine was given, and waits for it.
IoResult perform(int fd, const IoOperation& operation);

// Whether a transfer always waits here for what it needs, because the file system cannot say that it would
// have to (RWF_NOWAIT; tmpfs is one). Reads a byte where it can.
bool cannot_try(int fd);

// Whether `os_errno` says that the file system, or the block device, cannot do such a thing at all.
bool is_unsupported(int os_errno);

}  // namespace mayfly::file_io
