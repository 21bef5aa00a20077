#include "boot/image_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstdio>

#include "base/file.h"

namespace mayfly {
namespace {

std::string full_name(std::string_view role, std::string_view path) {
  return std::string(role).append(" ").append(path);
}

const char* kind_of(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return "a directory";
    case S_IFIFO:
      return "a pipe";
    case S_IFSOCK:
      return "a socket";
    case S_IFCHR:
    case S_IFBLK:
      return "a device";
    default:
      return "a special file";
  }
}

}  // namespace

Result<UniqueFd> open_image_file(const std::string& path, std::string_view role) {
  MAYFLY_TRY_ASSIGN(UniqueFd file, open_file(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, role));
  MAYFLY_TRY(ImageFile::examine(file, role, path));
  return file;
}

Result<ImageFile> ImageFile::examine(const UniqueFd& file, std::string_view role, std::string_view path) {
  std::string name = full_name(role, path);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) {
    return fail_errno(errno, "look at " + name);
  }
  if (!S_ISREG(status.st_mode)) {
    return fail(ErrorCode::kInvalidImage, name + ": is " + kind_of(status.st_mode) + ", not a regular file");
  }
  return ImageFile(file, std::move(name), static_cast<std::uint64_t>(status.st_size));
}

Result<void> ImageFile::read(std::uint64_t offset, std::span<std::byte> destination) const {
  if (!has(offset, destination.size())) {
    return refuse("ends at " + hex(size_) + ", within the " + std::to_string(destination.size()) +
                  " bytes expected at " + hex(offset));
  }
  MAYFLY_TRY_ASSIGN(const std::size_t got,
                    read_at(*file_, offset, {destination.data(), destination.size()}, name_));
  if (got < destination.size()) {
    return refuse("became shorter while it was read");
  }
  return {};
}

Result<void> ImageFile::place(GuestMemory& memory, GuestAddress address, std::uint64_t offset,
                              std::uint64_t length) const {
  return memory.load_file(address, *file_, offset, length, name_);
}

tl::unexpected<Error> ImageFile::refuse(std::string_view why) const {
  return fail(ErrorCode::kInvalidImage, std::string(name_).append(": ").append(why));
}

}  // namespace mayfly
