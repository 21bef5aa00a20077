// A jail as a whole: what it is made of, and the order in which it is made.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "cgroup.h"
#include "options.h"
#include "resource_limits.h"
#include "tree.h"

namespace mayfly::jail {

// When jailer was started: microseconds, for the monitor's start-up metrics.
struct StartTimes {
  std::uint64_t monotonic_us = 0;
  std::uint64_t cpu_us = 0;
};

// All that is to be done, looked up on the host and checked as far as that is possible without doing it.
struct Plan {
  Options options;
  UniqueFd monitor;
  TreePlan tree;
  std::optional<UniqueFd> netns;
  std::vector<CgroupPlan> cgroups;
  std::vector<Limit> limits;
  int landlock = 0;  // version, 0: none
};
Result<Plan> make_plan(Options options);

// Refuses what run_jail() would refuse, as far as that can be found out without making anything: for a dry
// run. Nothing changes but this process, which may be in other namespaces afterwards.
Result<void> rehearse(const Plan& plan);

// What run_jail() would do, a line each.
std::string describe(const Plan& plan);

// The arguments of the monitor, its name first. `parent_cpu_us`: what was spent on it by a process that is
// not the one that becomes the monitor.
std::vector<std::string> monitor_arguments(const Options& options, const StartTimes& start,
                                           std::uint64_t parent_cpu_us);

// Makes the jail, enters it, and becomes the monitor. So it comes back only with an error, after everything
// that was made is gone again; or, with --daemonize or --new-pid-ns, in the parent process once the monitor
// runs. What could not be taken back is told in the error's text.
Result<void> run_jail(Plan plan, const StartTimes& start);

}  // namespace mayfly::jail
