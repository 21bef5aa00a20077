#include "devices/virtio/block/file_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace mayfly::file_io {
namespace {

constexpr std::size_t kZeroBlock = std::size_t{64} * 1024;

// Never written: pages of zeroes in the program's image.
alignas(4096) constinit std::array<std::byte, kZeroBlock> g_zeroes{};

// Calls `transfer` with what is left until all is done. It returns bytes, or -1 with errno set.
template <typename Transfer>
IoResult transfer_all(std::span<iovec> buffers, std::uint64_t offset, Transfer transfer) {
  while (!buffers.empty()) {
    const ssize_t done = transfer(buffers, static_cast<off_t>(offset));
    if (done < 0) {
      if (errno == EINTR) {
        continue;
      }
      return {errno};
    }
    if (done == 0) {
      return {ENODATA};
    }
    buffers = advance(buffers, static_cast<std::size_t>(done));
    offset += static_cast<std::uint64_t>(done);
  }
  return {};
}

IoResult allocate(int fd, int mode, std::uint64_t offset, std::uint64_t length) {
  while (::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) != 0) {
    if (errno != EINTR) {
      return {errno};
    }
  }
  return {};
}

}  // namespace

std::span<iovec> advance(std::span<iovec> buffers, std::size_t bytes) {
  while (!buffers.empty() && bytes >= buffers.front().iov_len) {
    bytes -= buffers.front().iov_len;
    buffers = buffers.subspan(1);
  }
  if (bytes != 0 && !buffers.empty()) {
    buffers.front().iov_base = static_cast<std::byte*>(buffers.front().iov_base) + bytes;
    buffers.front().iov_len -= bytes;
  }
  return buffers;
}

IoResult read_all(int fd, std::span<iovec> buffers, std::uint64_t offset) {
  return transfer_all(buffers, offset, [fd](std::span<iovec> to, off_t at) {
    return ::preadv2(fd, to.data(), static_cast<int>(to.size()), at, 0);
  });
}

IoResult write_all(int fd, std::span<iovec> buffers, std::uint64_t offset, bool durable) {
  return transfer_all(buffers, offset, [fd, durable](std::span<iovec> from, off_t at) {
    return ::pwritev2(fd, from.data(), static_cast<int>(from.size()), at, durable ? RWF_DSYNC : 0);
  });
}

IoResult flush(int fd) {
  while (::fdatasync(fd) != 0) {
    if (errno != EINTR) {
      return {errno};
    }
  }
  return {};
}

IoResult punch_hole(int fd, std::uint64_t offset, std::uint64_t length) {
  return allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

IoResult zero_range(int fd, std::uint64_t offset, std::uint64_t length) {
  const IoResult zeroed = allocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
  return is_unsupported(zeroed.os_errno) ? write_zeroes(fd, offset, length) : zeroed;
}

IoResult write_zeroes(int fd, std::uint64_t offset, std::uint64_t length) {
  constexpr std::size_t kBlocks = 16;
  while (length != 0) {
    std::array<iovec, kBlocks> buffers;
    std::size_t count = 0;
    std::uint64_t bytes = 0;
    while (count < kBlocks && bytes < length) {
      const std::uint64_t here = std::min<std::uint64_t>(kZeroBlock, length - bytes);
      buffers.at(count++) = {g_zeroes.data(), here};
      bytes += here;
    }
    if (const IoResult written = write_all(fd, std::span(buffers).first(count), offset, false);
        written.os_errno != 0) {
      return written;
    }
    offset += bytes;
    length -= bytes;
  }
  return {};
}

IoResult perform(int fd, const IoOperation& operation) {
  switch (operation.kind) {
    case IoOperation::Kind::kRead:
      return read_all(fd, operation.buffers, operation.offset);
    case IoOperation::Kind::kWrite:
      return write_all(fd, operation.buffers, operation.offset, operation.durable);
    case IoOperation::Kind::kFlush:
      return flush(fd);
    case IoOperation::Kind::kDiscard: {
      // Advice only: where the host cannot follow it, nothing is lost.
      const IoResult punched = punch_hole(fd, operation.offset, operation.length);
      return is_unsupported(punched.os_errno) ? IoResult{} : punched;
    }
    case IoOperation::Kind::kZero:
      return zero_range(fd, operation.offset, operation.length);
    case IoOperation::Kind::kZeroAndFree: {
      const IoResult punched = punch_hole(fd, operation.offset, operation.length);
      return is_unsupported(punched.os_errno) ? zero_range(fd, operation.offset, operation.length) : punched;
    }
  }
  return IoResult{};
}

bool cannot_try(int fd) {
  std::byte byte{};
  const iovec buffer{&byte, sizeof(byte)};
  return ::preadv2(fd, &buffer, 1, 0, RWF_NOWAIT) < 0 && is_unsupported(errno);
}

bool is_unsupported(int os_errno) {
  return os_errno == EOPNOTSUPP || os_errno == ENOSYS || os_errno == ENODEV;
}

}  // namespace mayfly::file_io
