#include "base/file.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/check.h"

namespace mayfly {

ssize_t send_at_once(int socket, std::string_view bytes) {
  // SAFETY: the kernel only reads what is sent; iovec has no const.
  iovec whole{.iov_base = const_cast<char*>(bytes.data()), .iov_len = bytes.size()};
  msghdr message{};
  message.msg_iov = &whole;
  message.msg_iovlen = 1;
  return ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

Result<std::size_t> read_at(const UniqueFd& file, std::uint64_t offset, iovec destination,
                            std::string_view role) {
  auto* const start = static_cast<std::byte*>(destination.iov_base);
  std::size_t filled = 0;
  // A signal may interrupt a call, and each may bring less than was asked for: at most 0x7ffff000 bytes
  // (read(2)), and of some files of the kernel's own a page.
  while (filled < destination.iov_len) {
    const ssize_t count = ::pread(file.get(), start + filled, destination.iov_len - filled,
                                  static_cast<off_t>(offset + filled));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return fail_errno(errno, std::string("read ").append(role));
    }
    if (count == 0) {
      break;
    }
    filled += static_cast<std::size_t>(count);
  }
  return filled;
}

Result<std::size_t> read_past_cache(const UniqueFd& file, std::uint64_t offset, iovec destination,
                                    std::string_view role) {
  constexpr std::size_t kUnit = 4096;  // a multiple of most disks' block
  auto* const start = static_cast<std::byte*>(destination.iov_base);
  std::size_t filled = 0;
  const int flags = ::fcntl(file.get(), F_GETFL);
  if (flags >= 0 && ::fcntl(file.get(), F_SETFL, flags | O_DIRECT) == 0) {
    while (filled < destination.iov_len) {
      const ssize_t count = ::pread(file.get(), start + filled, destination.iov_len - filled,
                                    static_cast<off_t>(offset + filled));
      if (count < 0 && errno == EINTR) {
        continue;
      }
      if (count <= 0 || static_cast<std::size_t>(count) % kUnit != 0) {
        break;  // what is left, and what is wrong with it, the cache knows
      }
      filled += static_cast<std::size_t>(count);
    }
    MAYFLY_CHECK(::fcntl(file.get(), F_SETFL, flags) == 0, "what was set can be taken back");
  }
  MAYFLY_TRY_ASSIGN(const std::size_t more,
                    read_at(file, offset + filled, {start + filled, destination.iov_len - filled}, role));
  return filled + more;
}

Result<void> write_at(const UniqueFd& file, std::uint64_t offset, iovec source, std::string_view role) {
  const auto* const start = static_cast<const std::byte*>(source.iov_base);
  std::size_t written = 0;
  // As in read_at(). A file system that is full takes what still fits and fails at the next call.
  while (written < source.iov_len) {
    const ssize_t count =
        ::pwrite(file.get(), start + written, source.iov_len - written, static_cast<off_t>(offset + written));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      return fail_errno(count < 0 ? errno : EIO, std::string("write ").append(role));
    }
    written += static_cast<std::size_t>(count);
  }
  return {};
}

Result<std::string> read_file(const std::string& path, std::string_view role, std::size_t limit) {
  MAYFLY_TRY_ASSIGN(const UniqueFd fd, open_file(path, O_RDONLY | O_NOCTTY, role));
  std::string text;
  std::array<char, 4096> buffer;
  for (;;) {
    const ssize_t count = ::read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      return fail_errno(errno, std::string("read ").append(role).append(" ").append(path));
    }
    if (count == 0) {
      return text;
    }
    text.append(buffer.data(), static_cast<std::size_t>(count));
    if (text.size() > limit) {
      return fail(ErrorCode::kOutOfRange,
                  std::string(role).append(" ").append(path).append(": larger than ") +
                      std::to_string(limit) + " bytes");
    }
  }
}

}  // namespace mayfly
