#include "base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/unique_fd.h"

namespace mayfly {

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
