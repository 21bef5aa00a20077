// The policy that ships, tried out in a process of its own for each thread: every system call that no rule
// names, every one whose arguments no rule allows, and what a thread does when it crashes.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/crash.h"
#include "base/exit_code.h"
#include "base/file.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/thread_name.h"
#include "seccomp/compiler/policy.h"
#include "seccomp/format.h"
#include "seccomp/policy/built_in.h"
#include "seccomp/policy/syscall_names.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using seccomp::Policy;
using seccomp::Rule;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::read_lines;
using testing::TempDir;

constexpr int kNumbers = 1024;  // more than there are system calls
constexpr int kX32 = 0x4000'0000;

using Arguments = std::array<std::uint64_t, 6>;

struct Call {
  int number;
  Arguments arguments;
};

Policy policy_of(FilteredThread thread) {
  const std::string path = std::string(MAYFLY_POLICIES "/") + name_of(thread) + ".json";
  const auto text = read_file(path, "policy", seccomp::kMaxPolicy);
  EXPECT_TRUE(text.has_value()) << path;
  auto policy = seccomp::parse_policy(text.value_or(""), path);
  EXPECT_TRUE(policy.has_value()) << policy.error().message();
  return policy.value_or(Policy{});
}

// In the process that asks.
std::uint64_t wanted(const seccomp::ArgumentTest& test) {
  return test.value == seccomp_format::kOwnProcess ? static_cast<std::uint64_t>(::getpid()) : test.value;
}

bool allows(const Rule& rule, const Call& call) {
  return rule.number == call.number && std::ranges::all_of(rule.arguments, [&call](const auto& test) {
           return (call.arguments.at(test.index) & test.mask) == wanted(test);
         });
}

bool allows(const Policy& policy, const Call& call) {
  return std::ranges::any_of(policy.rules, [&call](const Rule& rule) { return allows(rule, call); });
}

volatile sig_atomic_t g_refused = 0;

// In a child process that is confined as `thread`: makes each call that the policy does not allow, and ends
// with how many of them the kernel let through, or with 255 where it could not begin. Calls that the filter
// stops have no effect; the handler lets the child go on behind them.
int let_through(FilteredThread thread, const std::vector<Call>& (*calls)(const Policy&), std::string& which) {
  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const Policy policy = policy_of(thread);
  const pid_t child = ::fork();
  if (child == 0) {
    const std::vector<Call> forbidden = calls(policy);
    struct sigaction action {};
    action.sa_handler = [](int) { g_refused = 1; };
    ::sigaction(SIGSYS, &action, nullptr);
    const auto filters = built_in_filters();
    if (!filters || !filters->confine(thread) || forbidden.empty()) {
      ::_exit(255);
    }
    int failures = 0;
    for (const Call& call : forbidden) {
      const Arguments& a = call.arguments;
      g_refused = 0;
      ::syscall(call.number, a[0], a[1], a[2], a[3], a[4], a[5]);
      if (g_refused == 0) {
        ++failures;
        // Of these, every thread may write.
        [[maybe_unused]] const ssize_t told = ::write(ends[1], &call, sizeof(call));
      }
    }
    ::_exit(std::min(failures, 254));
  }
  ::close(ends[1]);
  Call call{};
  while (::read(ends[0], &call, sizeof(call)) == sizeof(call)) {
    which += std::string(syscall_name(call.number)) + " (" + std::to_string(call.number) + ")";
    for (const std::uint64_t argument : call.arguments) {
      which += " " + std::to_string(argument);
    }
    which += "\n";
  }
  ::close(ends[0]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

const std::vector<Call>& calls_that_no_rule_names(const Policy& policy) {
  static std::vector<Call> calls;
  calls.clear();
  for (int number = 0; number < kNumbers; ++number) {
    // uretprobe and uprobe, which no filter sees (Linux 6.15): they are for code that the kernel itself has
    // put there, and a SIGILL to everybody else.
    if (number == 335 || number == 336) {
      continue;
    }
    if (std::ranges::none_of(policy.rules, [number](const Rule& rule) { return rule.number == number; })) {
      calls.push_back({number, {}});
    }
  }
  calls.push_back({-1, {}});
  return calls;
}

// Of each rule's arguments one after the other is another: each value that any rule of the project's asks
// for, and those around it.
const std::vector<Call>& arguments_that_no_rule_allows(const Policy& policy) {
  static std::vector<Call> calls;
  calls.clear();
  std::vector<std::uint64_t> values = {0,    1,           2,           4,           8,
                                       0x10, 0x7fff'ffff, 0x8000'0000, 0xffff'ffff, 1ULL << 32};
  for (const FilteredThread thread : kFilteredThreads) {
    for (const Rule& rule : policy_of(thread).rules) {
      for (const auto& test : rule.arguments) {
        for (const std::uint64_t value :
             {wanted(test) - 1, wanted(test), wanted(test) + 1, wanted(test) | 4, wanted(test) ^ 0x8000'0000,
              wanted(test) | std::uint64_t{1} << 40}) {
          values.push_back(value);
        }
      }
    }
  }
  std::ranges::sort(values);
  values.erase(std::unique(values.begin(), values.end()), values.end());
  for (const Rule& rule : policy.rules) {
    Call good{rule.number, {}};
    for (const auto& test : rule.arguments) {
      good.arguments.at(test.index) = wanted(test);
    }
    for (const auto& test : rule.arguments) {
      for (const std::uint64_t value : values) {
        Call bad = good;
        bad.arguments.at(test.index) = value;
        if (!allows(policy, bad)) {
          calls.push_back(bad);
        }
      }
    }
  }
  return calls;
}

// What an attacker would like to do, by name: no rule that is added one day may allow it by accident.
const std::vector<Call>& what_must_never_be_allowed(const Policy& policy) {
  static std::vector<Call> calls;
  const auto address = reinterpret_cast<std::uintptr_t>(&calls);  // SAFETY: never followed
  const auto none = static_cast<std::uint64_t>(-1);
  constexpr std::uint64_t kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
  calls = {
      {SYS_execve, {address}},
      {SYS_execveat, {none, address}},
      {SYS_fork, {}},
      {SYS_vfork, {}},
      {SYS_clone, {SIGCHLD}},
      {SYS_clone, {CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM}},
      {SYS_clone3, {}},
      {SYS_ptrace, {}},
      {SYS_process_vm_writev, {}},
      {SYS_mmap, {0, 4096, PROT_READ | PROT_EXEC, kAnonymous, none}},
      {SYS_mmap, {0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, kAnonymous, none}},
      {SYS_mmap, {0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0}},
      {SYS_mmap, {address, 4096, PROT_READ | PROT_WRITE, kAnonymous | MAP_FIXED, none}},
      {SYS_mprotect, {address, 4096, PROT_READ | PROT_EXEC}},
      {SYS_mprotect, {address, 4096, PROT_READ | PROT_WRITE}},
      {SYS_pkey_mprotect, {address, 4096, PROT_EXEC, none}},
      {SYS_mremap, {}},
      {SYS_memfd_create, {address}},
      {SYS_socket, {AF_INET, SOCK_STREAM}},
      {SYS_socket, {AF_UNIX, SOCK_STREAM}},
      {SYS_socket, {AF_NETLINK, SOCK_RAW}},
      {SYS_connect, {none}},
      {SYS_bind, {none}},
      {SYS_openat, {none, address, O_RDWR | O_CREAT}},
      {SYS_openat, {none, address, O_RDWR | O_CREAT | O_CLOEXEC, 0600}},
      {SYS_openat, {none, address, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 06755}},
      {SYS_openat, {none, address, O_RDWR | O_TMPFILE | O_CLOEXEC, 04755}},
      {SYS_openat, {none, address, O_WRONLY | O_TRUNC}},
      {SYS_openat, {none, address, O_RDONLY | O_DIRECTORY}},
      {SYS_open, {address}},
      {SYS_openat2, {none, address}},
      {SYS_open_by_handle_at, {none}},
      {SYS_mknodat, {none, address}},
      {SYS_linkat, {none, address, none, address}},
      {SYS_linkat, {none, address, none, address, AT_SYMLINK_FOLLOW}},
      {SYS_unlinkat, {none, address, AT_REMOVEDIR}},
      {SYS_rename, {address, address}},
      {SYS_symlinkat, {address, none, address}},
      {SYS_renameat2, {none, address, none, address}},
      {SYS_chmod, {address}},
      {SYS_chown, {address}},
      {SYS_chroot, {address}},
      {SYS_mount, {}},
      {SYS_pivot_root, {}},
      {SYS_unshare, {CLONE_NEWUSER}},
      {SYS_setns, {none}},
      {SYS_setuid, {}},
      {SYS_capset, {}},
      {SYS_prctl, {22}},
      {SYS_prctl, {4, 1}},
      {SYS_seccomp, {1}},
      {SYS_bpf, {}},
      {SYS_perf_event_open, {}},
      {SYS_userfaultfd, {}},
      {SYS_keyctl, {}},
      {SYS_io_uring_setup, {1, address}},
      {SYS_io_uring_register, {none, 0}},
      {SYS_kill, {1, 0}},
      {SYS_tkill, {1, 0}},
      {SYS_tgkill, {1, 1, SIGABRT}},
      {SYS_tgkill, {static_cast<std::uint64_t>(::getpid()), static_cast<std::uint64_t>(::getpid()), SIGKILL}},
      {SYS_pidfd_send_signal, {none, SIGTERM}},
      {SYS_pidfd_send_signal, {none, SIGKILL}},
      {SYS_pidfd_open, {1}},
      {SYS_pidfd_getfd, {none}},
      {SYS_rt_sigaction, {SIGSYS}},
      {SYS_ioctl, {none, TIOCSTI}},
      {SYS_ioctl, {none, FIONBIO}},
      {SYS_ioctl, {none, KVM_CREATE_VM}},
      {SYS_ioctl, {none, KVM_SET_USER_MEMORY_REGION}},
      {SYS_ioctl, {none, KVM_CREATE_DEVICE}},
      {SYS_fcntl, {none, F_SETOWN, 1}},
      {SYS_fcntl, {none, F_DUPFD, 0}},
      {SYS_fcntl, {none, F_SETFL, O_ASYNC}},
      {SYS_fcntl, {none, F_SETFL, 0}},
      {SYS_wait4, {none, address}},
      {SYS_pwritev2, {none, address, 1, 0, 0, 0x20}},  // RWF_NOAPPEND
      {SYS_madvise, {address, 4096, MADV_REMOVE}},
      {SYS_futex, {address, 6}},   // FUTEX_LOCK_PI
      {SYS_futex, {address, 12}},  // FUTEX_CMP_REQUEUE_PI
  };
  // Nothing here is for any thread; a rule that says otherwise is a failure of its own.
  for (const Call& call : calls) {
    EXPECT_FALSE(allows(policy, call)) << syscall_name(call.number);
  }
  return calls;
}

class Enforced : public ::testing::TestWithParam<FilteredThread> {
 protected:
  void expect_none(const std::vector<Call>& (*calls)(const Policy&)) {
    std::string which;
    EXPECT_EQ(let_through(GetParam(), calls, which), 0) << which;
  }
};

TEST_P(Enforced, every_call_that_no_rule_names_is_stopped) {
  expect_none(calls_that_no_rule_names);
}

TEST_P(Enforced, every_argument_that_no_rule_allows_is_stopped) {
  if (std::ranges::all_of(policy_of(GetParam()).rules,
                          [](const Rule& rule) { return rule.arguments.empty(); })) {
    FAIL() << "no rule has an argument";
  }
  expect_none(arguments_that_no_rule_allows);
}

TEST_P(Enforced, what_must_never_be_allowed_is_stopped) {
  expect_none(what_must_never_be_allowed);
}

struct Words {
  int status = 0;  // as waitpid(2) gives it
  std::vector<std::string> log;
  std::vector<std::string> metrics;
};

// Runs `body` in a child that has the monitor's crash handlers and is confined as `thread`.
Words last_words(FilteredThread thread, const std::function<void()>& body) {
  const TempDir dir;
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    set_thread_name("mayfly_test");
    open_log_on_stderr();
    const bool ready =
        configure_log(
            {.path = dir.file("log"), .level = {}, .show_level = {}, .show_origin = {}, .module = {}})
            .has_value() &&
        metrics().open({.path = dir.file("metrics"), .instance_id = {}, .properties = {}}).has_value() &&
        install_crash_handlers().has_value();
    set_syscall_names(syscall_name);
    const auto filters = built_in_filters();
    if (ready && filters && filters->confine(thread)) {
      body();
    }
    ::_exit(99);
  }
  Words words;
  EXPECT_EQ(::waitpid(child, &words.status, 0), child);
  words.log = read_lines(dir.file("log"));
  words.metrics = read_lines(dir.file("metrics"));
  return words;
}

bool exited_with(const Words& words, ExitCode code) {
  return WIFEXITED(words.status) && WEXITSTATUS(words.status) == static_cast<int>(code);
}

TEST_P(Enforced, a_forbidden_call_ends_the_process_with_its_code_its_line_and_its_metric) {
  const Words words = last_words(GetParam(), [] { ::syscall(SYS_socket, AF_INET, SOCK_STREAM, 0); });
  EXPECT_TRUE(exited_with(words, ExitCode::kForbiddenSyscall)) << words.status;
  EXPECT_THAT(words.log,
              ElementsAre(EndsWith(":mayfly_test] ended by SIGSYS: forbidden system call socket (" +
                                   std::to_string(SYS_socket) + "); exit code 148")));
  EXPECT_THAT(words.metrics, ElementsAre(HasSubstr("\"num_faults\":1")));
}

TEST_P(Enforced, a_crash_is_reported) {
  const Words words = last_words(GetParam(), [] {
    volatile int* volatile nowhere = nullptr;
    *nowhere = 1;
  });
  EXPECT_TRUE(exited_with(words, ExitCode::kSegmentationFault)) << words.status;
  EXPECT_THAT(words.log, ElementsAre(HasSubstr("ended by SIGSEGV at address 0x0")));
  EXPECT_THAT(words.metrics, ElementsAre(HasSubstr("\"sigsegv\":1")));
}

TEST_P(Enforced, an_abort_ends_the_process_by_sigabrt) {
  const Words words = last_words(GetParam(), [] { std::abort(); });
  EXPECT_TRUE(WIFSIGNALED(words.status) && WTERMSIG(words.status) == SIGABRT) << words.status;
}

TEST_P(Enforced, a_check_that_fails_says_so_and_ends_the_process_by_sigabrt) {
  const Words words = last_words(GetParam(), [] {
    volatile bool holds = false;
    MAYFLY_CHECK(holds, "made to fail");
  });
  EXPECT_TRUE(WIFSIGNALED(words.status) && WTERMSIG(words.status) == SIGABRT) << words.status;
}

TEST_P(Enforced, a_call_of_another_architecture_ends_the_process_without_a_word) {
  for (const int number : {kX32 | SYS_getpid, kX32 | SYS_write}) {
    const Words words = last_words(GetParam(), [number] { ::syscall(number); });
    EXPECT_TRUE(WIFSIGNALED(words.status) && WTERMSIG(words.status) == SIGSYS) << words.status;
  }
}

TEST_P(Enforced, sigsys_cannot_be_blocked_away) {
  const Words words = last_words(GetParam(), [] {
    sigset_t all{};
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
    ::syscall(SYS_getuid);
  });
  EXPECT_TRUE(WIFSIGNALED(words.status) && WTERMSIG(words.status) == SIGSYS) << words.status;
}

// By the flags that the policy has for files.
TEST_P(Enforced, no_other_process_of_the_user_can_be_reached_by_the_files_that_may_be_opened) {
  const bool writes = GetParam() == FilteredThread::kMonitor;
  if (!writes && GetParam() != FilteredThread::kSnapshot) {
    GTEST_SKIP() << "it opens no files";
  }
  if (::syscall(SYS_landlock_create_ruleset, nullptr, 0, 1) < 1) {
    GTEST_SKIP() << "no Landlock";
  }
  const std::string memory = "/proc/" + std::to_string(::getpid()) + "/mem";
  const int flags =
      writes ? O_RDWR | O_NOCTTY | O_CLOEXEC : O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
  const pid_t child = ::fork();
  if (child == 0) {
    if (::open(memory.c_str(), flags) < 0) {
      ::_exit(2);
    }
    const auto filters = built_in_filters();
    if (!filters || !filters->confine(GetParam())) {
      ::_exit(3);
    }
    const bool other = ::open(memory.c_str(), flags) >= 0;
    const bool own = ::open("/proc/self/maps", flags & ~O_ACCMODE) >= 0;
    ::_exit((other ? 4 : 0) | (own ? 0 : 8));
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << WEXITSTATUS(status);
}

INSTANTIATE_TEST_SUITE_P(Threads, Enforced, ::testing::ValuesIn(kFilteredThreads),
                         [](const auto& thread) { return std::string(name_of(thread.param)); });

}  // namespace
}  // namespace mayfly
