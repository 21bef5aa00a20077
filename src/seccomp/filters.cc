#include "seccomp/filters.h"

#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string>

#include "base/unique_fd.h"
#include "seccomp/format.h"

namespace mayfly {
namespace {

constexpr std::uint16_t kCompareEqual = BPF_JMP | BPF_JEQ | BPF_K;

// Takes a file apart from its beginning.
class Reader {
 public:
  explicit Reader(std::string_view rest) : rest_(rest) {}

  bool take(std::span<std::byte> to) {
    if (rest_.size() < to.size()) {
      return false;
    }
    std::ranges::copy(std::as_bytes(std::span(rest_.substr(0, to.size()))), to.begin());
    rest_.remove_prefix(to.size());
    return true;
  }
  bool take(std::uint32_t& value) { return take(std::as_writable_bytes(std::span(&value, 1))); }
  bool at_end() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

// A Landlock domain of the thread's own, where the host has Landlock (Linux 5.13; linux/landlock.h of older
// headers lacks it). A filter sees numbers and no paths, so that whoever may open files may open
// /proc/PID/mem of any process of the user's, and write there. From within a domain no process outside of it
// can be reached by ptrace(2) or what needs the same right, which is most of /proc/PID; the own process
// always can be. What the ruleset itself is about, to execute files, filters stop as well.
Result<void> enter_domain() {
  constexpr std::uint64_t kAccessExecute =
      1;  // LANDLOCK_ACCESS_FS_EXECUTE: the whole of version 1's structure
  const UniqueFd ruleset(
      static_cast<int>(::syscall(SYS_landlock_create_ruleset, &kAccessExecute, sizeof(kAccessExecute), 0)));
  // EPERM: a container's filter that does not know the call.
  if (!ruleset && (errno == ENOSYS || errno == EOPNOTSUPP || errno == EPERM)) {
    return {};
  }
  if (!ruleset || ::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) {
    return fail_errno(errno, "keep a thread from other processes by Landlock");
  }
  return {};
}

}  // namespace

const char* name_of(FilteredThread thread) {
  switch (thread) {
    case FilteredThread::kMonitor:
      return "monitor";
    case FilteredThread::kApi:
      return "api";
    case FilteredThread::kVcpu:
      return "vcpu";
    case FilteredThread::kSnapshot:
      return "snapshot";
    case FilteredThread::kGuard:
      return "guard";
  }
  return "unknown";
}

bool may_lack(FilteredThread thread) {
  return thread == FilteredThread::kSnapshot || thread == FilteredThread::kGuard;
}

Result<Filters> Filters::parse(std::string_view file) {
  const auto wrong = [](const char* what) { return fail(ErrorCode::kInvalidArgument, what); };
  if (!file.starts_with(seccomp_format::kMagic)) {
    return wrong("no filters that mayfly-seccomp has compiled");
  }
  Reader reader(file.substr(seccomp_format::kMagic.size()));
  std::uint32_t version = 0;
  std::uint32_t architecture = 0;
  if (!reader.take(version) || version != seccomp_format::kVersion) {
    return wrong("filters for another version of Mayfly: compile them with its own mayfly-seccomp");
  }
  if (!reader.take(architecture) || architecture != seccomp_format::kArchitecture) {
    return wrong("filters for another processor");
  }
  const auto own_process = static_cast<std::uint32_t>(::getpid());
  Filters filters;
  for (const FilteredThread thread : kFilteredThreads) {
    auto& program = filters.programs_.at(static_cast<std::size_t>(thread));
    const std::uint32_t least = may_lack(thread) ? 0 : 1;
    std::uint32_t count = 0;
    if (!reader.take(count) || count < least || count > BPF_MAXINSNS) {
      return wrong("damaged: a filter of no length that there can be");
    }
    program.resize(count);
    if (!reader.take(std::as_writable_bytes(std::span(program)))) {
      return wrong("damaged: it ends within a filter");
    }
    for (sock_filter& instruction : program) {
      if (instruction.code == kCompareEqual && instruction.k == seccomp_format::kOwnProcess) {
        instruction.k = own_process;
      }
    }
  }
  if (!reader.at_end()) {
    return wrong("damaged: there is more behind the last filter");
  }
  return filters;
}

void Filters::complete(const Filters& own) {
  for (std::size_t thread = 0; thread < programs_.size(); ++thread) {
    if (programs_.at(thread).empty()) {
      programs_.at(thread) = own.programs_.at(thread);
    }
  }
}

Result<void> Filters::confine(FilteredThread thread) const {
  const auto& program = programs_.at(static_cast<std::size_t>(thread));
  // Without it only root may load a filter: a program with more rights must not be confined by one with less.
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return fail_errno(errno, "give up new privileges");
  }
  MAYFLY_TRY(enter_domain());
  // SAFETY: the kernel copies the program and does not write to it; its type has no const.
  auto* const instructions = const_cast<sock_filter*>(program.data());
  sock_fprog filter{.len = static_cast<unsigned short>(program.size()), .filter = instructions};
  if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) != 0) {
    return fail_errno(errno, std::string("load the seccomp filter of thread ") + name_of(thread));
  }
  return {};
}

}  // namespace mayfly
