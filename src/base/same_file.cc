#include "base/same_file.h"

#include <sys/stat.h>

#include <filesystem>
#include <optional>
#include <system_error>

namespace mayfly {
namespace {

// Where a file is, or would be made.
struct Place {
  dev_t device;
  ino_t folder;
  std::string name;

  friend bool operator==(const Place&, const Place&) = default;
};

// Nothing where no file could be made there. A symbolic link that leads to no file is followed: opening with
// O_CREAT makes the file at its end.
std::optional<Place> place_of(std::filesystem::path path) {
  constexpr int kMostLinks = 40;  // as the kernel has it: path_resolution(7)
  for (int links = 0; links <= kMostLinks; ++links) {
    const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
    struct stat status {};
    if (!path.has_filename() || ::stat(folder.c_str(), &status) != 0) {
      return std::nullopt;
    }
    std::error_code no_link;
    const std::filesystem::path target = std::filesystem::read_symlink(path, no_link);
    if (no_link) {
      return Place{status.st_dev, status.st_ino, path.filename().string()};
    }
    path = folder / target;
  }
  return std::nullopt;
}

}  // namespace

bool same_file(const struct stat& one, const struct stat& other) {
  // A block device is its number: any number of nodes lead to it, in whatever file systems.
  if (S_ISBLK(one.st_mode)) {
    return S_ISBLK(other.st_mode) && one.st_rdev == other.st_rdev;
  }
  return S_ISREG(one.st_mode) && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

bool same_file(const std::string& one, const std::string& other) {
  if (one.empty() || other.empty()) {
    return false;  // no path at all: the host need not be asked
  }
  struct stat a {};
  struct stat b {};
  const bool has_one = ::stat(one.c_str(), &a) == 0;
  const bool has_other = ::stat(other.c_str(), &b) == 0;
  if (has_one != has_other) {
    return false;
  }
  if (has_one) {
    return same_file(a, b);
  }
  const auto place = place_of(one);
  return place && place == place_of(other);
}

}  // namespace mayfly
