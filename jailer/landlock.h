// Landlock: a wall that holds where the root directory's does not (landlock(7)).
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly::jail {

// Which version of Landlock the kernel has, or 0: none, or switched off.
int landlock_version();

// What a version can refuse, as landlock_create_ruleset(2) takes it.
struct LandlockRights {
  std::uint64_t files;   // handled_access_fs
  std::uint64_t net;     // handled_access_net
  std::uint64_t scoped;  // abstract sockets and signals that leave the domain
};
LandlockRights landlock_rights(int version);

// Rights to files that a rule grants, of those that the version knows.
// Below the jail's root: all but to make folders, links, device nodes and FIFOs, to remove folders, to move
// between folders, and to execute.
std::uint64_t landlock_jail_rights(int version);
// On the monitor's own file: to execute it.
std::uint64_t landlock_monitor_rights();

// Confines the calling thread, and what it becomes, for good: to the directory `root` and below, in which
// only `monitor` can be executed; no TCP, no signal and no abstract socket to the outside. The thread must
// have no-new-privs set.
Result<void> confine(int version, const std::string& root, const std::string& monitor);

}  // namespace mayfly::jail
