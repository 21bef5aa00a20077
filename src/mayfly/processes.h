// The running microVMs of a user, as /proc shows them. There is no registry: a process that runs is one.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// What a process's command line tells. Any process of the user may have any command line: nothing here is
// to be trusted further than that user, and only `id` is known to be printable.
struct MonitorProcess {
  pid_t pid = 0;
  std::uint64_t start_time = 0;  // in ticks since the host's boot: pid and this are never used twice
  bool is_template = false;      // template.h; its name is its id
  std::string id;
  std::optional<std::string> socket;   // as a person names it; absent: no control API
  std::string socket_to_connect;       // the same file from here, also where the process is in a chroot
  std::optional<std::uint64_t> vcpus;  // of `mayfly run`
  std::optional<std::uint64_t> memory_mib;
};

// Where to look: /proc, or a test's stand-in for it.
struct ProcessView {
  std::string proc = "/proc";
  uid_t user = 0;
};

// /proc and the user of this process.
ProcessView this_users_processes();

// By pid. Processes whose program is called mayfly, and whose arguments are those of a monitor or a template.
// A process that ends meanwhile, or that cannot be looked at, is left out. Errors: /proc cannot be read.
Result<std::vector<MonitorProcess>> find_monitors(const ProcessView& view);

// A pidfd of the process, or nothing where it has ended by now. Readable once it ends (pidfd_open(2)).
Result<std::optional<UniqueFd>> open_process(const ProcessView& view, const MonitorProcess& process);

}  // namespace mayfly
