// Control groups, of both versions: finding the hierarchies, making a jail's group, its values, joining it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "options.h"
#include "undo.h"

namespace mayfly::jail {

// A hierarchy that is mounted.
struct CgroupHierarchy {
  std::string path;  // where
  CgroupVersion version;
  std::vector<std::string> controllers;  // of version 1, as mounted
};

// From the text of /proc/self/mountinfo (proc(5)). Of a hierarchy mounted several times, the first.
std::vector<CgroupHierarchy> cgroup_hierarchies(std::string_view mountinfo);

// What a jail needs in one hierarchy.
struct CgroupPlan {
  CgroupHierarchy hierarchy;
  std::string group;                    // relative to the hierarchy: "mayfly/vm1"
  std::vector<CgroupSetting> settings;  // in their order
  bool is_joined_only = false;          // the group is there already and stays as it is
};

// The groups that the options ask for: one for every hierarchy with a controller of --cgroup; of version 2
// the --parent-cgroup itself where there is no --cgroup, as the dialect has it. A controller that the host
// does not offer is refused, and so is a file that only the other version has.
Result<std::vector<CgroupPlan>> plan_cgroups(const Options& options,
                                             const std::vector<CgroupHierarchy>& hierarchies);

// Whether what a file reads as is what was written to it: the same but for white space, or the same number or
// list of CPUs in the kernel's spelling ("64M" as "67108864", rounded to pages; "0,1" as "0-1"; "50000" as
// "50000 100000"; "-1" as what is unlimited; one line of several). Of a format that is not known here the
// kernel's word is taken, which did not refuse it.
bool reads_as(std::string_view written, std::string_view read);

// Makes the group and sets its values, each of which is read back; `undo` gets the way back. A group of the
// jail's name that is there already is refused: a jail's group is its own. Answers its list of members, open
// for writing.
Result<UniqueFd> make_cgroup(const CgroupPlan& plan, Undo& undo);

// Refuses what make_cgroup() would refuse, as far as that can be seen without making anything: for a dry run.
Result<void> check_cgroup(const CgroupPlan& plan);

// Moves the calling thread (version 1) or process (version 2) into a group, by its open list of members.
Result<void> join_cgroup(const UniqueFd& members, const CgroupPlan& plan);

// The list of members of the group in which this process is, so that it can be moved back; `own_cgroups` is
// the text of /proc/self/cgroup. Nothing where it cannot be found or written.
std::optional<UniqueFd> open_own_cgroup(const CgroupHierarchy& hierarchy, std::string_view own_cgroups);

// Removes a group in which no process is left; that it is not there is fine. Waits up to a second for
// processes that are ending.
Result<void> remove_cgroup(const std::string& path);
// Removes a group in which there is nothing, and leaves one that is used.
Result<void> remove_unused_cgroup(const std::string& path);

}  // namespace mayfly::jail
