#include "namespaces.h"

#include <linux/magic.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "options.h"

namespace mayfly::jail {
namespace {

// linux/prctl.h; the enumeration pid_type is the kernel's own, and part of its interface here.
constexpr int kSchedCore = 62;                 // PR_SCHED_CORE
constexpr unsigned long kSchedCoreCreate = 1;  // PR_SCHED_CORE_CREATE
constexpr unsigned long kThreadGroup = 1;      // PIDTYPE_TGID

Result<void> write_file(const std::string& path, std::string_view text) {
  MAYFLY_TRY_ASSIGN(const UniqueFd file, open_file(path, O_WRONLY, "for writing"));
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return fail_errno(errno, std::string("write ").append(text).append(" to ").append(path));
  }
  return {};
}

// In the root directory to be, programs work, and the device nodes that were made in `dev`. Others do where
// its file system was not mounted without them: it may be an image that is not trusted.
Result<void> allow_devices(const std::string& doing) {
  struct statvfs found {};
  if (::statvfs(".", &found) != 0) {
    return fail_errno(errno, doing + "look at its mount");
  }
  constexpr unsigned long kRemount = MS_REMOUNT | MS_BIND | MS_NOSUID;
  const bool is_without = (found.f_flag & ST_NODEV) != 0;
  if (is_without && ::mount("dev", "dev", nullptr, MS_BIND, nullptr) != 0) {
    return fail_errno(errno, doing + "mount its device nodes");
  }
  if (is_without && ::mount(nullptr, "dev", nullptr, kRemount | MS_NOEXEC, nullptr) != 0) {
    return fail_errno(errno, doing + "allow its device nodes");
  }
  if (::mount(nullptr, ".", nullptr, kRemount | (is_without ? static_cast<unsigned long>(MS_NODEV) : 0),
              nullptr) != 0) {
    return fail_errno(errno, doing + "allow its program");
  }
  return {};
}

bool is_same(const struct stat& one, const struct stat& other) {
  return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

}  // namespace

Result<UniqueFd> open_netns(const std::string& path) {
  const std::string flag = "--netns " + shown(path);
  auto file = open_file(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, "network namespace");
  if (!file) {
    return tl::make_unexpected(file.error().within(flag));
  }
  struct statfs system {};
  if (::fstatfs(file->get(), &system) != 0) {
    return fail_errno(errno, flag);
  }
  if (system.f_type != NSFS_MAGIC) {
    return fail(ErrorCode::kInvalidArgument,
                flag + ": is no network namespace, such as 'ip netns add' makes in /run/netns");
  }
  return file;
}

Result<void> join_netns(const UniqueFd& netns, const std::string& path) {
  if (::setns(netns.get(), CLONE_NEWNET) == 0) {
    return {};
  }
  const std::string flag = "--netns " + shown(path);
  if (errno == EINVAL) {
    return fail(ErrorCode::kInvalidArgument, flag + ": is a namespace, but not of the network");
  }
  return fail_errno(errno, flag + ": join it");
}

Result<void> enter_user_namespace(uid_t user, gid_t group) {
  const std::string outer_user = std::to_string(::geteuid());
  const std::string outer_group = std::to_string(::getegid());
  if (::unshare(CLONE_NEWUSER) != 0) {
    return fail_errno(errno, "--rootless: make a user namespace (see user.max_user_namespaces)");
  }
  // Without setgroups() nobody can use a group's absence from the map to gain what the group is denied.
  MAYFLY_TRY(write_file("/proc/self/setgroups", "deny"));
  MAYFLY_TRY(write_file("/proc/self/uid_map", std::to_string(user) + " " + outer_user + " 1"));
  return write_file("/proc/self/gid_map", std::to_string(group) + " " + outer_group + " 1");
}

Result<void> enter_namespaces() {
  if (::unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) != 0) {
    return fail_errno(errno, "make mount, IPC and UTS namespaces");
  }
  return {};
}

Result<void> enter_cgroup_namespace() {
  if (::unshare(CLONE_NEWCGROUP) != 0) {
    return fail_errno(errno, "make a cgroup namespace");
  }
  return {};
}

Result<void> change_root(const std::string& path, const UniqueFd& root, bool is_rootless,
                         const std::vector<std::string>& devices) {
  const std::string doing = "make " + path + " the root directory: ";
  if (::mount(nullptr, "/", nullptr, MS_PRIVATE | MS_REC, nullptr) != 0) {
    return fail_errno(errno, doing + "keep its mounts from the host's");
  }
  // What is to be the root must be a mount, so it is mounted on itself; together with what is mounted below.
  if (::mount(path.c_str(), path.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0) {
    return fail_errno(errno, doing + "mount it");
  }
  struct stat meant {};
  struct stat found {};
  if (::chdir(path.c_str()) != 0 || ::fstat(root.get(), &meant) != 0 || ::stat(".", &found) != 0) {
    return fail_errno(errno, doing + "look at it");
  }
  if (!is_same(meant, found)) {
    return fail(ErrorCode::kInvalidArgument, doing + "it was replaced by another meanwhile");
  }
  if (!is_rootless) {
    MAYFLY_TRY(allow_devices(doing));
  }
  for (const std::string& device : devices) {
    const std::string outside = "/dev/" + device;
    const std::string inside = "dev/" + device;
    if (::mount(outside.c_str(), inside.c_str(), nullptr, MS_BIND, nullptr) != 0) {
      return fail_errno(errno, std::string(doing).append("mount ").append(outside));
    }
  }
  // pivot_root(2): the old root directory comes to lie on the new one, and is taken away from there.
  if (::syscall(SYS_pivot_root, ".", ".") != 0) {
    return fail_errno(errno, doing + "pivot_root");
  }
  if (::umount2(".", MNT_DETACH) != 0) {
    return fail_errno(errno, doing + "unmount the host's");
  }
  if (::chdir("/") != 0) {
    return fail_errno(errno, doing + "go there");
  }
  return {};
}

Result<void> claim_cores() {
  if (::prctl(kSchedCore, kSchedCoreCreate, 0, kThreadGroup, 0) == 0) {
    return {};
  }
  if (errno == ENODEV) {  // the kernel could, but there are no siblings: nobody shares a core here
    return {};
  }
  if (errno == EINVAL) {
    return fail(ErrorCode::kUnsupported,
                "--core-scheduling: this host's kernel cannot do it (it takes Linux 5.14, built with "
                "CONFIG_SCHED_CORE); switching SMT off (/sys/devices/system/cpu/smt/control) keeps microVMs "
                "apart as well");
  }
  return fail_errno(errno, "--core-scheduling: claim the cores");
}

}  // namespace mayfly::jail
