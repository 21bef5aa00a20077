#include "cleanup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include "base/file.h"
#include "cgroup.h"
#include "record.h"
#include "safe_path.h"
#include "tree.h"

namespace mayfly::jail {
namespace {

constexpr std::size_t kMaxFile = std::size_t{16} << 20U;

tl::unexpected<Error> runs(const std::string& what, const std::string& pid) {
  return fail(ErrorCode::kBusy, what + ": process " + pid + " runs in it; end that first");
}

// The jail's groups that are there: those it says it has, and in every hierarchy those that one of these
// arguments would have.
Result<std::vector<std::string>> groups_of(const Options& options, const Record& record) {
  MAYFLY_TRY_ASSIGN(const std::string mounts, read_file("/proc/self/mountinfo", "the mounts", kMaxFile));
  std::set<std::string> candidates(record.cgroups.begin(), record.cgroups.end());
  for (const CgroupHierarchy& hierarchy : cgroup_hierarchies(mounts)) {
    candidates.insert(hierarchy.path + "/" + options.cgroup_parent() + "/" + options.id);
  }
  std::vector<std::string> groups;
  for (const std::string& group : candidates) {
    const UniqueFd folder(::open(group.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!folder && errno == ENOENT) {
      continue;
    }
    struct statfs system {};
    if (!folder || ::fstatfs(folder.get(), &system) != 0) {
      return fail_errno(errno, "look at cgroup " + group);
    }
    if (system.f_type != CGROUP_SUPER_MAGIC && system.f_type != CGROUP2_SUPER_MAGIC) {
      return fail(ErrorCode::kInvalidArgument, group + ": is no cgroup, and is not removed");
    }
    MAYFLY_TRY_ASSIGN(const std::string inside,
                      read_file("/proc/self/fd/" + std::to_string(folder.get()) + "/cgroup.procs",
                                "the cgroup's processes", kMaxFile));
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
    // A parent that was named is its maker's, with the values it has.
    if (!options.parent_cgroup && group.ends_with("/" + options.exec_name + "/" + options.id)) {
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

bool is_number(std::string_view name) {
  return !name.empty() && std::ranges::all_of(name, [](char c) { return c >= '0' && c <= '9'; });
}

// The entries of a directory of /proc whose names are numbers; none where the process has ended.
Result<std::vector<std::string>> numbers_in(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  if (!folder) {
    if (errno == ENOENT || errno == ESRCH) {
      return std::vector<std::string>{};
    }
    return fail_errno(errno, "list " + path);
  }
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* const entry = ::readdir(folder.get());
    if (entry == nullptr) {
      break;
    }
    if (is_number(&entry->d_name[0])) {
      names.emplace_back(&entry->d_name[0]);
    }
  }
  if (errno != 0 && errno != ENOENT && errno != ESRCH) {
    return fail_errno(errno, "list " + path);
  }
  return names;
}

// getpriority(2) answers for all processes of a real user, and each thread of theirs; what runs in a jail
// cannot become another user, in a user namespace neither. The kernel goes through all processes in the order
// in which they were made, and one that ended under its eyes still leads on to those made after it: a process
// that does nothing but fork and end is found at its latest.
bool has_processes(uid_t user) {
  errno = 0;
  return ::getpriority(PRIO_USER, user) != -1 || errno != ESRCH;
}

using Numbers = std::set<std::string>;  // of processes, as /proc has them

struct Look {
  std::optional<std::string> running;  // a process of the user's
  Numbers ended;                       // those of the user's that have ended but in name only
  bool is_whole = true;                // none that may be the user's went away while it was looked at
};

bool is_ended(std::string_view status) {
  return status.find("\nState:\tZ") != std::string_view::npos ||
         status.find("\nState:\tX") != std::string_view::npos;
}

// One that has ended but in name only, as its parent did not wait for it yet, does not run; but it does where
// only its first thread has ended. Those that had ended `before` may go away.
Look look_for(uid_t user, const Numbers& before) {
  Look look;
  const auto processes = numbers_in("/proc");
  look.is_whole = processes.has_value();
  const std::string own = "\nUid:\t" + std::to_string(user) + "\t";
  for (const std::string& process : processes.value_or(std::vector<std::string>{})) {
    const bool may_go = before.contains(process);
    const auto status = read_file("/proc/" + process + "/status", "a process", kMaxFile);
    look.is_whole = look.is_whole && (status || may_go);
    if (!status || status->find(own) == std::string::npos) {
      continue;
    }
    const std::string tasks = "/proc/" + process + "/task";
    const auto threads = numbers_in(tasks);
    look.is_whole = look.is_whole && ((threads && !threads->empty()) || may_go);
    for (const std::string& thread : threads.value_or(std::vector<std::string>{})) {
      const auto of_thread =
          read_file(std::string(tasks).append("/").append(thread).append("/status"), "a thread", kMaxFile);
      look.is_whole = look.is_whole && (of_thread || may_go);
      if (of_thread && !is_ended(*of_thread)) {
        look.running = process;
        return look;
      }
    }
    look.ended.insert(process);
  }
  return look;
}

// Refuses where a process of the user's runs, or may run: one after the other, too short for a look.
Result<void> check_user(uid_t user, const std::string& path) {
  constexpr int kMostTries = 100;
  constexpr int kLeastTries = 10;
  constexpr std::chrono::seconds kPatience(2);  // beyond the least: nobody is held up for long
  constexpr int kLooks = 3;  // in which nothing new has ended: that would have been somebody's who runs
  const auto end = std::chrono::steady_clock::now() + kPatience;
  int looks = 0;
  Numbers ended;
  const auto may_try = [&end](int tries) {
    return tries < kLeastTries || (tries < kMostTries && std::chrono::steady_clock::now() < end);
  };
  for (int tries = 0; may_try(tries) && has_processes(user); ++tries) {
    Look look = look_for(user, ended);
    if (look.running) {
      return fail(ErrorCode::kBusy, path + ": process " + *look.running + " is of user " +
                                        std::to_string(user) + ", as this jail's are; end that first");
    }
    // Where none is seen although there is one, it was another at every moment.
    const bool is_nothing_new = !look.ended.empty() && std::ranges::includes(ended, look.ended);
    looks = look.is_whole && is_nothing_new ? looks + 1 : 0;
    ended = std::move(look.ended);
    if (looks == kLooks) {
      return {};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (has_processes(user)) {
    return fail(ErrorCode::kBusy, path + ": there are processes of user " + std::to_string(user) +
                                      ", as this jail's are; end them first");
  }
  return {};
}

// Refuses a jail in which something runs: with its root directory, or by its user anywhere.
Result<void> check_idle(const UniqueFd* root, std::optional<uid_t> user, const TreePlan& tree) {
  constexpr int kPasses = 2;  // what is made while the first one looks is seen by the second
  for (int pass = 0; root != nullptr && pass < kPasses; ++pass) {
    MAYFLY_TRY_ASSIGN(const auto inside, processes_in(*root, "/proc"));
    if (!inside.empty()) {
      return runs(tree.root(), inside.front());
    }
  }
  return user ? check_user(*user, tree.path()) : Result<void>();
}

// Refuses a folder without a record that is no jail's by what it holds: named by mistake, it must not be
// emptied.
Result<void> check_shape(const UniqueFd& jail, const TreePlan& tree) {
  MAYFLY_TRY_ASSIGN(const auto names, names_in(jail, tree.path()));
  const auto is_there = [](const UniqueFd& folder, const std::string& name) {
    struct stat found {};
    return ::fstatat(folder.get(), name.c_str(), &found, AT_SYMLINK_NOFOLLOW) == 0;
  };
  for (const std::string& name : names) {
    if (name == kRecordName && is_there(jail, name)) {
      return {};
    }
  }
  for (const std::string& name : names) {
    if (name != "root" && !name.starts_with(kMovedPrefix)) {
      return fail(ErrorCode::kInvalidArgument,
                  tree.path() + ": holds " + shown(name) + ", so it is no jail's, and is not removed");
    }
  }
  const auto root = open_own_folder(jail, "root", tree.root());
  if (!root) {
    return root.error().os_errno() == ENOENT ? Result<void>() : tl::make_unexpected(root.error());
  }
  MAYFLY_TRY_ASSIGN(const auto inside, names_in(*root, tree.root()));
  if (!inside.empty() && !is_there(*root, "dev") && !is_there(*root, tree.name + ".pid")) {
    return fail(ErrorCode::kInvalidArgument, tree.root() + ": holds neither dev nor " + tree.name +
                                                 ".pid, so no jail was made there, and it is not removed");
  }
  return {};
}

// The user of a jail that has no record of it.
std::optional<uid_t> user_of(const UniqueFd* root) {
  struct stat run {};
  if (root != nullptr && ::fstatat(root->get(), "run", &run, AT_SYMLINK_NOFOLLOW) == 0 && run.st_uid != 0 &&
      run.st_uid != ::geteuid()) {
    return run.st_uid;
  }
  return std::nullopt;
}

}  // namespace

Result<std::vector<std::string>> processes_in(const UniqueFd& root, const std::string& proc) {
  struct stat meant {};
  if (::fstat(root.get(), &meant) != 0) {
    return fail_errno(errno, "look at the jail's root directory");
  }
  std::vector<std::string> found;
  MAYFLY_TRY_ASSIGN(const auto processes, numbers_in(proc));
  for (const std::string& process : processes) {
    const std::string tasks = std::string(proc).append("/").append(process).append("/task");
    MAYFLY_TRY_ASSIGN(const auto threads, numbers_in(tasks));
    for (const std::string& thread : threads) {  // the first may have ended, and others not
      const std::string path = std::string(tasks).append("/").append(thread).append("/root");
      struct stat own {};
      if (::stat(path.c_str(), &own) == 0) {
        if (own.st_dev == meant.st_dev && own.st_ino == meant.st_ino) {
          found.push_back(process);
          break;
        }
      } else if (errno != ENOENT && errno != ESRCH && errno != EACCES && errno != EPERM) {
        return fail_errno(errno, "look whether process " + process + " is in the jail");
      }
    }
  }
  return found;
}

Result<void> clean_up(const Options& options) {
  const TreePlan tree{
      .base = options.chroot_base, .name = options.exec_name, .id = options.id, .devices = {}};
  const auto remove_groups_only = [&options]() -> Result<void> {
    MAYFLY_TRY_ASSIGN(const auto groups, groups_of(options, {}));
    return remove_groups(options, groups);
  };
  MAYFLY_TRY_ASSIGN(const SafeFolder name, follow(tree.name_path()));
  if (!name.missing.empty()) {
    return remove_groups_only();
  }
  const auto jail = open_folder(name.fd, tree.id, tree.path());
  if (!jail && jail.error().os_errno() == ENOENT) {
    return remove_groups_only();
  }
  if (!jail) {
    return tl::make_unexpected(jail.error());
  }
  MAYFLY_TRY(check_private(*jail, tree.path()));
  MAYFLY_TRY(check_shape(*jail, tree));
  MAYFLY_TRY_ASSIGN(const auto file, lock_record(*jail, tree.path()));
  if (!file) {
    return fail(ErrorCode::kBusy, tree.path() + ": another jailer is at work on this --id");
  }
  MAYFLY_TRY_ASSIGN(const Record record, read_record(*file, tree.path()));
  MAYFLY_TRY_ASSIGN(const auto groups, groups_of(options, record));
  const auto root = open_own_folder(*jail, "root", tree.root());
  if (!root && root.error().os_errno() != ENOENT) {
    return tl::make_unexpected(root.error());
  }
  const UniqueFd* const inside = root ? &*root : nullptr;
  MAYFLY_TRY(check_idle(inside, file->is_new ? user_of(inside) : record.user, tree));
  MAYFLY_TRY(remove_groups(options, groups));
  // The record goes last, so that a clean-up that does not come to its end can be done again.
  MAYFLY_TRY(remove_contents(*jail, tree.path(), kRecordName));
  if (::unlinkat(jail->get(), kRecordName, 0) != 0 && errno != ENOENT) {
    return fail_errno(errno, "remove " + tree.path() + "/" + kRecordName);
  }
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
