// System call filters: which system calls a thread may make from now on, and with which arguments.
//
//   MAYFLY_TRY_ASSIGN(const Filters filters, Filters::parse(file));
//   MAYFLY_TRY(filters.confine(FilteredThread::kVcpu));  // the calling thread, for good
#pragma once

#include <linux/filter.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mayfly {

// The threads of a microVM, each with a filter of its own.
enum class FilteredThread : std::uint8_t { kMonitor, kApi, kVcpu, kSnapshot, kGuard };
inline constexpr std::array kFilteredThreads = {FilteredThread::kMonitor, FilteredThread::kApi,
                                                FilteredThread::kVcpu, FilteredThread::kSnapshot,
                                                FilteredThread::kGuard};

// "monitor", "api", "vcpu", "snapshot", "guard": as policies name them.
const char* name_of(FilteredThread thread);

// Whether a file of filters may be without one for that thread: for those that came after the first files.
bool may_lack(FilteredThread thread);

// A filter for each thread. Once made it is not changed: any thread may use it.
class Filters {
 public:
  // The longest file of compiled filters, in bytes: five of the kernel's longest programs.
  static constexpr std::size_t kMaxFile = 192 << 10;

  // A file as mayfly-seccomp writes it. Who may name it could as well run the monitor without filters: it is
  // checked to be a whole one of this format and for this processor, and the kernel checks that its programs
  // end. A filter that speaks of the monitor's own process means the calling one.
  // Errors: kInvalidArgument.
  static Result<Filters> parse(std::string_view file);

  // Takes the filters that this lacks from `own`: who wrote a policy before there was such a thread need not
  // say anything of it. Without one a thread cannot be confined, and does not run.
  void complete(const Filters& own);

  // From now on the calling thread, and each that it starts, makes no system call but those that the filter
  // allows: any other raises SIGSYS in it, and one of another architecture's ends the process. Cannot be
  // undone; filters that are loaded later only take away more. No program that the thread executes can gain
  // rights (PR_SET_NO_NEW_PRIVS). Where the host has Landlock, it reaches into no other process, neither by
  // ptrace(2) nor by /proc. Allocates nothing. Errors: of the host's, which may have no seccomp.
  Result<void> confine(FilteredThread thread) const;

 private:
  Filters() = default;

  std::array<std::vector<sock_filter>, kFilteredThreads.size()> programs_;
};

}  // namespace mayfly
