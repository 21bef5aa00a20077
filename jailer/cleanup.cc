#include "cleanup.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "base/file.h"
#include "cgroup.h"
#include "safe_path.h"
#include "tree.h"

namespace mayfly::jail {
namespace {

constexpr std::size_t kMaxFile = std::size_t{16} << 20U;

tl::unexpected<Error> runs(const std::string& what, const std::string& pid) {
  return fail(ErrorCode::kBusy, what + ": process " + pid + " runs in it; end that first");
}

// The jail's groups that are there, in every hierarchy: whoever cleans up need not know the jail's arguments.
Result<std::vector<std::string>> groups_of(const Options& options) {
  MAYFLY_TRY_ASSIGN(const std::string mounts, read_file("/proc/self/mountinfo", "the mounts", kMaxFile));
  std::vector<std::string> groups;
  for (const CgroupHierarchy& hierarchy : cgroup_hierarchies(mounts)) {
    const std::string group = hierarchy.path + "/" + options.cgroup_parent() + "/" + options.id;
    struct stat found {};
    if (::lstat(group.c_str(), &found) != 0) {
      continue;
    }
    MAYFLY_TRY_ASSIGN(const std::string inside,
                      read_file(group + "/cgroup.procs", "the cgroup's processes", kMaxFile));
    if (!inside.empty()) {
      return runs(group, inside.substr(0, inside.find('\n')));
    }
    groups.push_back(group);
  }
  return groups;
}

Result<void> remove_groups(const Options& options, const std::vector<std::string>& groups) {
  for (const std::string& group : groups) {
    MAYFLY_TRY(remove_cgroup(group));
    if (!options.parent_cgroup) {  // a parent that was named is its maker's, with the values it has
      MAYFLY_TRY(remove_unused_cgroup(group.substr(0, group.find_last_of('/'))));
    }
  }
  return {};
}

Result<void> remove_folder(const UniqueFd& parent, const std::string& name, const std::string& path) {
  if (::unlinkat(parent.get(), name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) {
    return {};
  }
  return fail_errno(errno, "remove " + path);
}

}  // namespace

Result<std::vector<std::string>> processes_in(const UniqueFd& root, const std::string& proc) {
  struct stat meant {};
  if (::fstat(root.get(), &meant) != 0) {
    return fail_errno(errno, "look at the jail's root directory");
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> processes(::opendir(proc.c_str()), ::closedir);
  if (!processes) {
    return fail_errno(errno, "list the processes in " + proc);
  }
  std::vector<std::string> found;
  for (const dirent* entry = ::readdir(processes.get()); entry != nullptr;
       entry = ::readdir(processes.get())) {
    const std::string name = &entry->d_name[0];
    struct stat own {};
    if (std::ranges::all_of(name, [](char c) { return c >= '0' && c <= '9'; }) &&
        ::stat(std::string(proc).append("/").append(name).append("/root").c_str(), &own) == 0 &&
        own.st_dev == meant.st_dev && own.st_ino == meant.st_ino) {
      found.push_back(name);
    }
  }
  return found;
}

Result<void> clean_up(const Options& options) {
  const TreePlan tree{
      .base = options.chroot_base, .name = options.exec_name, .id = options.id, .devices = {}};
  MAYFLY_TRY_ASSIGN(const SafeFolder name, follow(tree.name_path()));
  MAYFLY_TRY_ASSIGN(const auto groups, groups_of(options));
  if (!name.missing.empty()) {
    return remove_groups(options, groups);
  }
  const auto jail = open_folder(name.fd, tree.id, tree.path());
  if (!jail && jail.error().os_errno() == ENOENT) {
    return remove_groups(options, groups);
  }
  if (!jail) {
    return tl::make_unexpected(jail.error());
  }
  MAYFLY_TRY(check_owner(*jail, tree.path()));
  MAYFLY_TRY(lock_folder(*jail, tree.path()));
  const auto root = open_folder(*jail, "root", tree.root());
  if (root) {
    MAYFLY_TRY_ASSIGN(const auto inside, processes_in(*root, "/proc"));
    if (!inside.empty()) {
      return runs(tree.root(), inside.front());
    }
  }
  MAYFLY_TRY(remove_groups(options, groups));
  MAYFLY_TRY(remove_contents(*jail, tree.path()));
  MAYFLY_TRY(remove_folder(name.fd, tree.id, tree.path()));
  // The folder of all jails of this monitor goes with the last of them.
  MAYFLY_TRY_ASSIGN(const SafeFolder base, follow(tree.base));
  if (::unlinkat(base.fd.get(), tree.name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT &&
      errno != ENOTEMPTY && errno != EEXIST) {
    return fail_errno(errno, "remove " + tree.name_path());
  }
  return {};
}

}  // namespace mayfly::jail
