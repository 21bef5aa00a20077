#include "tree.h"

#include <elf.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "base/file.h"
#include "safe_path.h"

namespace mayfly::jail {
namespace {

constexpr mode_t kFolderMode = 0755;
// The group's: the monitor makes files in it. Sticky, so that it cannot replace those that are root's.
constexpr mode_t kRootMode = 01770;
constexpr mode_t kRootlessMode = 0700;
// While the jail is made: nobody else can move, replace or add anything in it.
constexpr mode_t kClosedMode = 0700;
constexpr mode_t kRunMode = 0700;
constexpr mode_t kDeviceMode = 0600;
constexpr mode_t kPidMode = 0644;
// Not readable, so that the process is not dumpable: no core file of it, and nobody of its user may trace it.
constexpr mode_t kMonitorMode = 0111;
constexpr mode_t kRootlessMonitorMode = 0555;
constexpr mode_t kPermissions = 07777;

#if defined(__x86_64__)
constexpr Elf64_Half kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr Elf64_Half kMachine = EM_AARCH64;
#endif

using SharedFd = std::shared_ptr<const UniqueFd>;

Result<SharedFd> duplicate(const UniqueFd& fd) {
  const int copy = ::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3);
  if (copy < 0) {
    return fail_errno(errno, "duplicate a descriptor");
  }
  return std::make_shared<const UniqueFd>(copy);
}

// Undoing needs the folder by descriptor: its path means another place once the root directory is changed.
void remove_later(Undo& undo, SharedFd folder, const std::string& name, int flags) {
  undo.add([folder = std::move(folder), name, flags]() -> Result<void> {
    const bool is_gone = ::unlinkat(folder->get(), name.c_str(), flags) == 0 || errno == ENOENT;
    if (is_gone || (flags == AT_REMOVEDIR && (errno == ENOTEMPTY || errno == EEXIST))) {
      return {};  // what others have put there meanwhile is theirs
    }
    return fail_errno(errno, "remove " + name);
  });
}

struct Folder {
  UniqueFd fd;
  bool is_new = false;
};

// Makes the folder, or opens the one that is there.
Result<Folder> make_folder(const UniqueFd& parent, const std::string& name, const std::string& path,
                           Undo& undo) {
  const bool is_new = ::mkdirat(parent.get(), name.c_str(), kFolderMode) == 0;
  if (!is_new && errno != EEXIST) {
    return fail_errno(errno, "make directory " + path);
  }
  if (is_new) {
    auto holder = duplicate(parent);
    if (!holder) {
      ::unlinkat(parent.get(), name.c_str(), AT_REMOVEDIR);
      return tl::make_unexpected(holder.error());
    }
    remove_later(undo, std::move(*holder), name, AT_REMOVEDIR);
  }
  MAYFLY_TRY_ASSIGN(UniqueFd fd, open_folder(parent, name, path));
  struct stat found {};
  if (is_new && ::fstat(fd.get(), &found) != 0) {
    return fail_errno(errno, "look at " + path);
  }
  if (is_new && found.st_uid != ::geteuid()) {
    return fail(ErrorCode::kInvalidArgument, path + ": was replaced by another meanwhile");
  }
  return Folder{.fd = std::move(fd), .is_new = is_new};
}

// The folder of all jails, made where it is missing; it stays.
Result<UniqueFd> make_base(const std::string& path, Undo& undo) {
  auto found = follow(path);
  if (!found) {
    return tl::make_unexpected(found.error().within("--chroot-base-dir " + shown(path)));
  }
  while (!found->missing.empty()) {
    const std::string name = found->missing.substr(0, found->missing.find('/'));
    found->path.append("/").append(name);
    found->missing.erase(0, std::min(found->missing.size(), name.size() + 1));
    MAYFLY_TRY_ASSIGN(Folder made, make_folder(found->fd, name, found->path, undo));
    MAYFLY_TRY(check_owner(made.fd, found->path));
    found->fd = std::move(made.fd);
  }
  return std::move(found->fd);
}

// Gives the folder an owner and a mode; undoing gives it back what it had.
Result<void> hand_over(const Folder& folder, const std::string& path, uid_t user, gid_t group, mode_t mode,
                       bool is_rootless, Undo& undo) {
  struct stat before {};
  if (::fstat(folder.fd.get(), &before) != 0) {
    return fail_errno(errno, "look at " + path);
  }
  if (!folder.is_new) {
    MAYFLY_TRY_ASSIGN(SharedFd held, duplicate(folder.fd));
    undo.add([held = std::move(held), before, path]() -> Result<void> {
      if (::fchown(held->get(), before.st_uid, before.st_gid) != 0 ||
          ::fchmod(held->get(), before.st_mode & kPermissions) != 0) {
        return fail_errno(errno, "give " + path + " back its owner and mode");
      }
      return {};
    });
  }
  if (!is_rootless && ::fchown(folder.fd.get(), user, group) != 0) {
    return fail_errno(
        errno, "give " + path + " to user " + std::to_string(user) + ", group " + std::to_string(group));
  }
  if (::fchmod(folder.fd.get(), mode) != 0) {
    return fail_errno(errno, "set the mode of " + path);
  }
  return {};
}

tl::unexpected<Error> is_used(const TreePlan& plan, const std::string& what) {
  return fail(ErrorCode::kBusy,
              plan.root() + "/" + what +
                  ": is there already: of a jail of this --id that runs, or left by one that "
                  "has ended (jailer --cleanup removes it)");
}

// What was prepared is the jail's user's already, or nobody's whom he could take it from.
Result<void> check_prepared(const TreePlan& plan, const UniqueFd& folder, const std::string& path) {
  struct stat found {};
  if (::fstat(folder.get(), &found) != 0) {
    return fail_errno(errno, "look at " + path);
  }
  if (found.st_uid != 0 && found.st_uid != ::geteuid() && found.st_uid != plan.user) {
    return fail(ErrorCode::kInvalidArgument, path + ": belongs to user " + std::to_string(found.st_uid) +
                                                 ", and must belong to root or to the jail's user");
  }
  return check_server(folder, path);
}

// A jail's root directory that was prepared holds files for the microVM, perhaps a folder for the API's
// socket, and nothing else that the jail itself is made of.
Result<void> check_root(const TreePlan& plan, const UniqueFd& root) {
  MAYFLY_TRY(check_prepared(plan, root, plan.root()));
  for (const std::string& name : {std::string("dev"), plan.name, plan.name + ".pid"}) {
    struct stat any {};
    if (::fstatat(root.get(), name.c_str(), &any, AT_SYMLINK_NOFOLLOW) == 0) {
      return is_used(plan, name);
    }
  }
  const std::string run = plan.root() + "/run";
  const auto prepared = open_folder(root, "run", run);
  if (!prepared && prepared.error().os_errno() == ENOENT) {
    return {};
  }
  if (!prepared) {
    return tl::make_unexpected(prepared.error());
  }
  return check_prepared(plan, *prepared, run);
}

// A file that must not be there, with nothing in it.
Result<UniqueFd> make_file(const TreePlan& plan, const UniqueFd& folder, const std::string& name, mode_t mode,
                           Undo& undo) {
  // With the holder first, nothing can fail between the file and its way back.
  MAYFLY_TRY_ASSIGN(SharedFd holder, duplicate(folder));
  UniqueFd file(
      ::openat(folder.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
  if (!file) {
    if (errno == EEXIST) {
      return is_used(plan, name);
    }
    return fail_errno(errno, "make " + plan.root() + "/" + name);
  }
  remove_later(undo, std::move(holder), name, 0);
  return file;
}

Result<std::unique_ptr<MonitorCopy>> copy_monitor(const TreePlan& plan, const UniqueFd& root,
                                                  const UniqueFd& monitor, Undo& undo) {
  const mode_t mode = plan.is_rootless ? kRootlessMonitorMode : kMonitorMode;
  MAYFLY_TRY_ASSIGN(UniqueFd file, make_file(plan, root, plan.name, mode, undo));
  return MonitorCopy::start(monitor, std::move(file), "the monitor to " + plan.root() + "/" + plan.name);
}

Result<void> make_device(const TreePlan& plan, const UniqueFd& folder, const std::string& name,
                         const Device& device, Undo& undo) {
  if (plan.is_rootless) {  // a file, for the host's node to be mounted on
    return make_file(plan, folder, name, kDeviceMode, undo).map([](const UniqueFd&) {});
  }
  const std::string path = plan.root() + "/dev/" + device.path;
  MAYFLY_TRY_ASSIGN(SharedFd holder, duplicate(folder));
  if (::mknodat(folder.get(), name.c_str(), S_IFCHR | kDeviceMode, ::makedev(device.major, device.minor)) !=
      0) {
    return fail_errno(errno, "make device node " + path);
  }
  remove_later(undo, std::move(holder), name, 0);
  // What is given away is what was made, whatever its name has come to mean.
  const UniqueFd node(::openat(folder.get(), name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  struct stat found {};
  if (!node || ::fstat(node.get(), &found) != 0) {
    return fail_errno(errno, "look at device node " + path);
  }
  if (!S_ISCHR(found.st_mode) || found.st_rdev != ::makedev(device.major, device.minor) ||
      found.st_uid != ::geteuid()) {
    return fail(ErrorCode::kInvalidArgument, path + ": was replaced by another meanwhile");
  }
  if (::fchownat(node.get(), "", plan.user, plan.group, AT_EMPTY_PATH) != 0) {
    return fail_errno(errno, "give device node " + path + " to its user");
  }
  return {};
}

Result<void> make_devices(const TreePlan& plan, const Folder& dev, Undo& undo) {
  for (const Device& device : plan.devices) {
    const std::size_t slash = device.path.find('/');
    if (slash == std::string::npos) {
      MAYFLY_TRY(make_device(plan, dev.fd, device.path, device, undo));
      continue;
    }
    const std::string below = device.path.substr(0, slash);
    MAYFLY_TRY_ASSIGN(const Folder folder, make_folder(dev.fd, below, plan.root() + "/dev/" + below, undo));
    MAYFLY_TRY(make_device(plan, folder.fd, device.path.substr(slash + 1), device, undo));
  }
  return {};
}

struct LockedFolder {
  Folder folder;
  RecordFile record;
};

// The folder that a second jailer or a clean-up would use as well; nothing where it was taken away meanwhile.
Result<std::optional<LockedFolder>> make_locked(const TreePlan& plan, const UniqueFd& base, Undo& undo) {
  MAYFLY_TRY_ASSIGN(const Folder name, make_folder(base, plan.name, plan.name_path(), undo));
  MAYFLY_TRY(check_owner(name.fd, plan.name_path()));
  auto jail = make_folder(name.fd, plan.id, plan.path(), undo);
  if (!jail && jail.error().os_errno() == ENOENT) {
    return std::nullopt;
  }
  if (!jail) {
    return tl::make_unexpected(jail.error());
  }
  MAYFLY_TRY(check_private(jail->fd, plan.path()));
  MAYFLY_TRY_ASSIGN(SharedFd holder, duplicate(jail->fd));
  MAYFLY_TRY_ASSIGN(auto record, lock_record(jail->fd, plan.path()));
  if (!record) {
    return std::nullopt;
  }
  if (record->is_new) {
    remove_later(undo, std::move(holder), kRecordName, 0);
  }
  return LockedFolder{.folder = std::move(*jail), .record = std::move(*record)};
}

// Before anything is made that it speaks of.
Result<void> record_jail(const TreePlan& plan, const LockedFolder& jail, Undo& undo) {
  if (!jail.record.is_new) {  // of a clean-up that did not come to its end
    MAYFLY_TRY_ASSIGN(SharedFd holder, duplicate(jail.folder.fd));
    remove_later(undo, std::move(holder), kRecordName, 0);
  }
  Record record{.user = std::nullopt, .cgroups = plan.cgroups};
  if (!plan.is_rootless) {
    record.user = plan.user;
  }
  return write_record(jail.record, record, plan.path());
}

bool is_static_program(const UniqueFd& file) {
  Elf64_Ehdr header{};
  const auto got = read_at(file, 0, {.iov_base = &header, .iov_len = sizeof header}, "the monitor");
  if (!got || *got != sizeof header || std::memcmp(&header.e_ident[0], ELFMAG, SELFMAG) != 0 ||
      header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kMachine ||
      header.e_phentsize != sizeof(Elf64_Phdr)) {
    return false;
  }
  for (unsigned index = 0; index < header.e_phnum; ++index) {
    Elf64_Phdr segment{};
    const auto read = read_at(file, header.e_phoff + index * sizeof segment,
                              {.iov_base = &segment, .iov_len = sizeof segment}, "the monitor");
    if (!read || *read != sizeof segment || segment.p_type == PT_INTERP) {
      return false;
    }
  }
  return true;
}

}  // namespace

Result<UniqueFd> open_monitor(const Options& options) {
  const std::string flag = "--exec-file " + shown(options.exec_file);
  const auto refuse = [&flag](const char* rule) {
    return fail(ErrorCode::kInvalidArgument, flag + ": " + rule);
  };
  // Not to wait for the other end of a FIFO.
  auto file = open_file(options.exec_file, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW, "the monitor");
  if (!file && file.error().os_errno() == ELOOP) {
    return refuse("is a symbolic link, and must be the program itself");
  }
  if (!file) {
    return tl::make_unexpected(file.error().within(flag));
  }
  struct stat found {};
  if (::fstat(file->get(), &found) != 0) {
    return fail_errno(errno, flag);
  }
  if (!S_ISREG(found.st_mode)) {
    return refuse("must be a regular file");
  }
  if ((found.st_mode & (S_IXUSR | S_IXGRP | S_IXOTH)) == 0) {
    return refuse("must be executable");
  }
  const bool is_user_own = !options.rootless && options.uid != 0 && found.st_uid == options.uid;
  if (is_user_own || (found.st_mode & S_IWOTH) != 0 ||
      (!options.rootless && found.st_gid == options.gid && (found.st_mode & S_IWGRP) != 0)) {
    return refuse(
        "the jail's user could change it: it must belong to another, and be writable by its owner only");
  }
  if (!is_static_program(*file)) {
    return refuse("must be a static 64-bit ELF program for this machine: there are no libraries in the jail");
  }
  return file;
}

Result<Tree> make_tree(const TreePlan& plan, const UniqueFd& monitor, Undo& undo) {
  MAYFLY_TRY_ASSIGN(const UniqueFd base, make_base(plan.base, undo));
  constexpr int kTries = 10;
  std::optional<LockedFolder> jail;
  for (int tries = 0; !jail; ++tries) {
    if (tries == kTries) {
      return fail(ErrorCode::kBusy, plan.path() + ": is being removed again and again");
    }
    MAYFLY_TRY_ASSIGN(jail, make_locked(plan, base, undo));
  }
  MAYFLY_TRY_ASSIGN(Folder root, make_folder(jail->folder.fd, "root", plan.root(), undo));
  // Before anything is changed there: it may be a jail that runs.
  MAYFLY_TRY(check_root(plan, root.fd));
  MAYFLY_TRY(record_jail(plan, *jail, undo));
  // Whoever it belonged to, or may write to it, could have its names mean something else at every step. From
  // here on it is root's alone, so it is looked at once more.
  MAYFLY_TRY(hand_over(root, plan.root(), ::geteuid(), ::getegid(), kClosedMode, plan.is_rootless, undo));
  MAYFLY_TRY(check_root(plan, root.fd));
  MAYFLY_TRY_ASSIGN(const Folder dev, make_folder(root.fd, "dev", plan.root() + "/dev", undo));
  if (!dev.is_new) {
    return is_used(plan, "dev");
  }
  MAYFLY_TRY_ASSIGN(auto copy, copy_monitor(plan, root.fd, monitor, undo));
  MAYFLY_TRY(make_devices(plan, dev, undo));
  MAYFLY_TRY_ASSIGN(const Folder run, make_folder(root.fd, "run", plan.root() + "/run", undo));
  MAYFLY_TRY(hand_over(run, plan.root() + "/run", plan.user, plan.group, kRunMode, plan.is_rootless, undo));
  MAYFLY_TRY_ASSIGN(UniqueFd pid_file, make_file(plan, root.fd, plan.name + ".pid", kPidMode, undo));
  // Open to the jail's group again, now that it is sticky and all in it that matters belongs to root.
  MAYFLY_TRY(hand_over(root, plan.root(), ::geteuid(), plan.group,
                       plan.is_rootless ? kRootlessMode : kRootMode, plan.is_rootless, undo));
  return Tree{.record = std::move(jail->record),
              .root = std::move(root.fd),
              .pid_file = std::move(pid_file),
              .monitor = std::move(copy)};
}

Result<void> check_tree(const TreePlan& plan) {
  MAYFLY_TRY_ASSIGN(const SafeFolder jail, follow(plan.path()));
  if (!jail.missing.empty()) {
    return {};
  }
  MAYFLY_TRY(check_private(jail.fd, plan.path()));
  MAYFLY_TRY(check_record(jail.fd, plan.path()));
  const auto root = open_folder(jail.fd, "root", plan.root());
  if (!root && root.error().os_errno() == ENOENT) {
    return {};
  }
  if (!root) {
    return tl::make_unexpected(root.error());
  }
  return check_root(plan, *root);
}

std::vector<std::string> describe(const TreePlan& plan, const std::string& exec_file) {
  const std::string owner =
      plan.is_rootless ? "this user, 0700" : "root, group " + std::to_string(plan.group) + ", 1770";
  const std::string user = std::to_string(plan.user) + ":" + std::to_string(plan.group);
  std::vector<std::string> lines = {"make the folder " + plan.root() + " (" + owner + ")"};
  for (const Device& device : plan.devices) {
    lines.push_back(plan.is_rootless
                        ? "make the file dev/" + device.path + " in it, for the host's /dev/" + device.path
                        : "make the device node dev/" + device.path + " in it, character " +
                              std::to_string(device.major) + ":" + std::to_string(device.minor) + " (" +
                              user + ", 0600)");
  }
  lines.push_back("make the folder run in it (" + user + ", 0700)");
  lines.push_back("copy " + exec_file + " to " + plan.name + " in it (" +
                  (plan.is_rootless ? "0555)" : "root, 0111)"));
  lines.push_back("write the process's number to " + plan.name + ".pid in it");
  return lines;
}

Result<void> write_pid(const UniqueFd& pid_file, pid_t pid) {
  const std::string text = std::to_string(pid);
  if (::write(pid_file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return fail_errno(errno, "write the PID file");
  }
  return {};
}

}  // namespace mayfly::jail
