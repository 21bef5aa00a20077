#include "mayfly/clone_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/unique_fd.h"

namespace mayfly {

std::optional<NewOutput> make_output(std::uint64_t index, const std::string& path) {
  constexpr mode_t kMode = 0600;
  const UniqueFd made(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, kMode));
  struct stat file {};
  if (!made || ::fstat(made.get(), &file) != 0) {
    return std::nullopt;
  }
  return NewOutput{.index = index, .device = file.st_dev, .inode = file.st_ino};
}

bool remove_files(const std::vector<MadeFile>& files) {
  bool all = true;
  for (const MadeFile& made : files) {
    struct stat file {};
    if (::lstat(made.path.c_str(), &file) != 0) {
      all = all && errno == ENOENT;
    } else if (file.st_dev == made.file.device && file.st_ino == made.file.inode) {
      all = ::unlink(made.path.c_str()) == 0 && all;
    }
  }
  return all;
}

}  // namespace mayfly
