// The namespaces of a jail, and its root directory.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly::jail {

// Opens the network namespace; refuses what is none, without waiting for or otherwise touching it.
Result<UniqueFd> open_netns(const std::string& path);
Result<void> join_netns(const UniqueFd& netns, const std::string& path);

// Enters a new user namespace in which this process is `user` and `group`, with all capabilities there and
// none outside. The process must have one thread.
Result<void> enter_user_namespace(uid_t user, gid_t group);

// Enters new mount, IPC and UTS namespaces. Concerns the calling thread only, as what follows does.
Result<void> enter_namespaces();
// Enters a cgroup namespace whose root is the group that the thread is in.
Result<void> enter_cgroup_namespace();

// Makes `path`, an absolute path of the directory `root`, the root directory of the mount namespace, from
// which everything else is gone afterwards. Programs work in it, device nodes in its `dev`, and others where
// its file system was not mounted without (nodev); with `is_rootless` as far as they did before, and
// `devices` (paths in /dev) are the host's, mounted on files that are there. To be called in a mount
// namespace of its own.
Result<void> change_root(const std::string& path, const UniqueFd& root, bool is_rootless,
                         const std::vector<std::string>& devices);

// Keeps the sibling threads of a core from running another's work beside this process's (core scheduling,
// Documentation/admin-guide/hw-vuln/core-scheduling.rst).
Result<void> claim_cores();

}  // namespace mayfly::jail
