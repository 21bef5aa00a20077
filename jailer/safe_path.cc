#include "safe_path.h"

#include <dirent.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <vector>

#include "base/file.h"
#include "base/text.h"

namespace mayfly::jail {
namespace {

Result<UniqueFd> open_beneath(const UniqueFd& parent, const std::string& name, const std::string& path,
                              std::uint64_t resolve) {
  open_how how{};
  how.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH | resolve;
  const long fd = ::syscall(SYS_openat2, parent.get(), name.c_str(), &how, sizeof how);
  if (fd >= 0) {
    return UniqueFd(static_cast<int>(fd));
  }
  if (errno == ELOOP) {
    return fail(ErrorCode::kInvalidArgument, path + ": is a symbolic link, which is not followed");
  }
  if (errno == ENOTDIR) {
    return fail(ErrorCode::kInvalidArgument, path + ": is not a directory");
  }
  if (errno == EXDEV) {
    return fail(ErrorCode::kInvalidArgument, path + ": something is mounted there");
  }
  return fail_errno(errno, "open directory " + path);
}

// An ordinary user's own directories may be closed to him, by what ran as him.
Result<UniqueFd> open_closed(const UniqueFd& parent, const std::string& name, const std::string& path,
                             std::uint64_t resolve) {
  if (::geteuid() != 0 && ::fchmodat(parent.get(), name.c_str(), S_IRWXU, AT_SYMLINK_NOFOLLOW) != 0 &&
      errno == ENOENT) {
    return fail_errno(ENOENT, "open directory " + path);
  }
  return open_beneath(parent, name, path, resolve);
}

// Whoever has a directory open, or works in it, can add to it no more, nor move what is in it.
Result<void> close_to_others(const UniqueFd& folder, const std::string& path) {
  if (::geteuid() != 0) {
    return {};  // an ordinary user removes but his own
  }
  if (::fchown(folder.get(), 0, 0) != 0 || ::fchmod(folder.get(), S_IRWXU) != 0) {
    return fail_errno(errno, "close " + path + " to others");
  }
  return {};
}

// Deeper folders are moved up and emptied there, so that what was prepared cannot use up our descriptors.
constexpr unsigned kMaxDepth = 32;

class Remover {
 public:
  Remover(const UniqueFd& top, const std::string& path, std::string_view kept)
      : top_(top), path_(path), kept_(kept) {}

  // In batches, as it may hold millions; and until none are left, as what was deep below is moved to the top.
  Result<void> empty(const UniqueFd& folder, unsigned depth) {
    for (bool is_more = true; is_more;) {
      MAYFLY_TRY_ASSIGN(const std::vector<std::string> names, names_in(folder, path_));
      is_more = false;
      for (const std::string& name : names) {
        if (depth > 0 || name != kept_) {
          MAYFLY_TRY(remove(folder, name, depth));
          is_more = true;
        }
      }
    }
    return {};
  }

 private:
  Result<void> remove(const UniqueFd& folder, const std::string& name, unsigned depth) {
    if (::unlinkat(folder.get(), name.c_str(), 0) == 0 || errno == ENOENT) {
      return {};
    }
    if (errno != EISDIR && errno != EPERM) {
      return fail_errno(errno, "remove " + name + " in " + path_);
    }
    if (::unlinkat(folder.get(), name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) {
      return {};
    }
    if (errno != ENOTEMPTY && errno != EEXIST) {
      return fail_errno(errno, "remove " + name + " in " + path_);
    }
    if (depth >= kMaxDepth) {
      std::string above;
      do {  // past names that are there already
        above = kMovedPrefix + std::to_string(++count_);
        errno = 0;
      } while (::renameat2(folder.get(), name.c_str(), top_.get(), above.c_str(), RENAME_NOREPLACE) != 0 &&
               errno == EEXIST);
      if (errno != 0) {
        return fail_errno(errno, "move " + name + " in " + path_);
      }
      return {};
    }
    MAYFLY_TRY_ASSIGN(const UniqueFd below, open_closed(folder, name, path_ + ": " + name, RESOLVE_NO_XDEV));
    MAYFLY_TRY(close_to_others(below, path_ + ": " + name));
    MAYFLY_TRY(empty(below, depth + 1));
    if (::unlinkat(folder.get(), name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
      return fail_errno(errno, "remove " + name + " in " + path_);
    }
    return {};
  }

  const UniqueFd& top_;
  const std::string& path_;
  const std::string_view kept_;
  unsigned count_ = 0;
};

}  // namespace

Result<UniqueFd> open_folder(const UniqueFd& parent, const std::string& name, const std::string& path) {
  return open_beneath(parent, name, path, 0);
}

Result<UniqueFd> open_own_folder(const UniqueFd& parent, const std::string& name, const std::string& path) {
  return open_closed(parent, name, path, 0);
}

Result<std::vector<std::string>> names_in(const UniqueFd& folder, const std::string& path) {
  constexpr std::size_t kMaxNames = 1024;
  const int copy = ::openat(folder.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) {
    return fail_errno(errno, "read " + path);
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(copy), ::closedir);
  if (!stream) {
    const int error = errno;
    ::close(copy);
    return fail_errno(error, "read " + path);
  }
  std::vector<std::string> names;
  while (names.size() < kMaxNames) {
    errno = 0;
    const dirent* const entry = ::readdir(stream.get());
    if (entry == nullptr) {
      if (errno != 0) {
        return fail_errno(errno, "read " + path);
      }
      break;
    }
    std::string name = &entry->d_name[0];
    if (name != "." && name != "..") {
      names.push_back(std::move(name));
    }
  }
  return names;
}

Server server_of(std::string_view mountinfo, std::string_view mount) {
  // 36 35 0:50 / /srv/a rw,nosuid,nodev - fuse.name name rw,user_id=1000,group_id=1000,allow_other
  constexpr std::string_view kUser = ",user_id=";
  while (!mountinfo.empty()) {
    const std::string_view line = mountinfo.substr(0, mountinfo.find('\n'));
    mountinfo.remove_prefix(std::min(mountinfo.size(), line.size() + 1));
    if (line.substr(0, line.find(' ')) == mount) {
      const std::size_t options = line.rfind(' ');
      const std::size_t user = line.find(kUser, options == std::string_view::npos ? 0 : options);
      if (user == std::string_view::npos) {
        return {.is_mounted = true, .user = {}};
      }
      const std::string_view number = line.substr(user + kUser.size());
      return {.is_mounted = true, .user = parse_integer<uid_t>(number.substr(0, number.find(',')))};
    }
  }
  return {};
}

Result<void> check_server(const UniqueFd& folder, const std::string& path) {
  struct statfs system {};
  if (::fstatfs(folder.get(), &system) != 0) {
    return fail_errno(errno, "look at the file system of " + path);
  }
  if (system.f_type != FUSE_SUPER_MAGIC) {
    return {};
  }
  constexpr std::size_t kMaxFile = std::size_t{16} << 20U;
  constexpr std::string_view kMount = "mnt_id:\t";
  MAYFLY_TRY_ASSIGN(const std::string info, read_file("/proc/self/fdinfo/" + std::to_string(folder.get()),
                                                      "a directory's mount", kMaxFile));
  MAYFLY_TRY_ASSIGN(const std::string mounts, read_file("/proc/self/mountinfo", "the mounts", kMaxFile));
  const std::string_view number =
      std::string_view(info).substr(std::min(info.size(), info.find(kMount) + kMount.size()));
  const Server server = server_of(mounts, number.substr(0, number.find('\n')));
  if (!server.is_mounted) {
    return fail(ErrorCode::kInvalidArgument,
                path +
                    ": is of a file system that a process serves and that is not mounted here: whose it "
                    "is cannot be known");
  }
  if (server.user && *server.user != 0 && *server.user != ::geteuid()) {
    return fail(ErrorCode::kInvalidArgument, path + ": is of a file system that a process of user " +
                                                 std::to_string(*server.user) +
                                                 " serves, who could change anything in it");
  }
  return {};
}

Result<void> check_owner(const UniqueFd& folder, const std::string& path) {
  struct stat found {};
  if (::fstat(folder.get(), &found) != 0) {
    return fail_errno(errno, "look at " + path);
  }
  if (found.st_uid != 0 && found.st_uid != ::geteuid()) {
    return fail(ErrorCode::kInvalidArgument, path + ": belongs to user " + std::to_string(found.st_uid) +
                                                 ", and must belong to root or to who runs this");
  }
  if ((found.st_mode & (S_IWGRP | S_IWOTH)) != 0 && (found.st_mode & S_ISVTX) == 0) {
    return fail(ErrorCode::kInvalidArgument, path + ": others may write to it, and must not");
  }
  return check_server(folder, path);
}

Result<void> check_private(const UniqueFd& folder, const std::string& path) {
  MAYFLY_TRY(check_owner(folder, path));
  struct stat found {};
  if (::fstat(folder.get(), &found) != 0) {
    return fail_errno(errno, "look at " + path);
  }
  if ((found.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return fail(ErrorCode::kInvalidArgument, path + ": others may put files there, and must not");
  }
  return {};
}

Result<SafeFolder> follow(const std::string& path) {
  MAYFLY_TRY_ASSIGN(UniqueFd root, open_file("/", O_RDONLY | O_DIRECTORY, "directory"));
  SafeFolder folder{.fd = std::move(root), .path = "", .missing = path.substr(1)};
  while (!folder.missing.empty()) {
    const std::string name = folder.missing.substr(0, folder.missing.find('/'));
    const std::string next = folder.path + "/" + name;
    auto opened = open_folder(folder.fd, name, next);
    if (!opened && opened.error().os_errno() == ENOENT) {
      return folder;
    }
    MAYFLY_TRY_ASSIGN(folder.fd, std::move(opened));
    MAYFLY_TRY(check_owner(folder.fd, next));
    folder.path = next;
    folder.missing.erase(0, std::min(folder.missing.size(), name.size() + 1));
  }
  return folder;
}

Result<void> remove_contents(const UniqueFd& folder, const std::string& path, std::string_view kept) {
  Remover remover(folder, path, kept);
  return remover.empty(folder, 0);
}

}  // namespace mayfly::jail
