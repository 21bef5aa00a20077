#include "base/crash.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "base/exit_code.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/text.h"
#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using testing::read_lines;
using testing::TempDir;

int g_hook_pipe = -1;

void write_hook_mark() {
  [[maybe_unused]] const ssize_t written = ::write(g_hook_pipe, "h", 1);
}

struct Outcome {
  int status = 0;    // as waitpid(2) gives it
  std::string hook;  // "h" for each time that the hook ran
  std::vector<std::string> log;
  std::vector<std::string> metrics;
};

// Runs `body` in a child process with the handlers installed.
Outcome run(const std::function<void()>& body, void (*hook)() = write_hook_mark) {
  const TempDir dir;
  const std::string log = dir.file("log");
  const std::string metrics_path = dir.file("metrics");
  std::array<int, 2> fds{};
  EXPECT_EQ(::pipe2(fds.data(), O_CLOEXEC), 0);
  const UniqueFd reader(fds[0]);
  UniqueFd writer(fds[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    g_hook_pipe = writer.get();
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    std::signal(SIGHUP, SIG_DFL);
    const bool ready =
        configure_log({.path = log, .level = {}, .show_level = true, .show_origin = {}, .module = {}})
            .has_value() &&
        metrics().open({.path = metrics_path, .instance_id = {}, .properties = {}}).has_value() &&
        install_crash_handlers().has_value();
    set_crash_hook(hook);
    if (ready) {
      body();
    }
    ::_exit(99);
  }
  writer.reset();
  Outcome outcome;
  EXPECT_EQ(::waitpid(child, &outcome.status, 0), child);
  std::array<char, 16> marks{};
  const ssize_t count = ::read(reader.get(), marks.data(), marks.size());
  outcome.hook.assign(marks.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
  outcome.log = read_lines(log);
  outcome.metrics = read_lines(metrics_path);
  return outcome;
}

bool exited_with(const Outcome& outcome, ExitCode code) {
  return WIFEXITED(outcome.status) && WEXITSTATUS(outcome.status) == static_cast<int>(code);
}

void expect_last_words(const Outcome& outcome, ExitCode code, const std::string& words,
                       const std::string& metric) {
  EXPECT_TRUE(exited_with(outcome, code)) << outcome.status;
  EXPECT_EQ(outcome.hook, "h");
  ASSERT_EQ(outcome.log.size(), 1U);
  const std::string end = words + "; exit code " + std::to_string(static_cast<int>(code));
  EXPECT_TRUE(outcome.log[0].ends_with(":ERROR] " + end)) << outcome.log[0];
  ASSERT_EQ(outcome.metrics.size(), 1U);
  EXPECT_NE(outcome.metrics[0].find("\"" + metric + "\":1"), std::string::npos);
}

TEST(Crash, each_fatal_signal_has_its_exit_code_its_line_and_its_metric) {
  struct Case {
    int signal;
    ExitCode code;
    const char* name;
    const char* metric;
  };
  for (const Case& c : {Case{SIGSYS, ExitCode::kForbiddenSyscall, "SIGSYS", "num_faults"},
                        Case{SIGBUS, ExitCode::kBusError, "SIGBUS", "sigbus"},
                        Case{SIGSEGV, ExitCode::kSegmentationFault, "SIGSEGV", "sigsegv"},
                        Case{SIGXCPU, ExitCode::kCpuTimeLimit, "SIGXCPU", "sigxcpu"},
                        Case{SIGHUP, ExitCode::kHangUp, "SIGHUP", "sighup"},
                        Case{SIGILL, ExitCode::kIllegalInstruction, "SIGILL", "sigill"}}) {
    const Outcome outcome = run([&] { ::kill(::getpid(), c.signal); });
    expect_last_words(outcome, c.code, std::string("ended by ") + c.name, c.metric);
  }
}

TEST(Crash, a_signal_from_elsewhere_names_its_sender) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer holds back a signal from another process in a forked child";
#endif
  const pid_t sender = ::getpid();
  const TempDir dir;
  const std::string ready = dir.fifo("ready");
  std::thread killer([&] {
    const UniqueFd reader = open_file(ready, O_RDONLY, "fifo").value();
    pid_t target = 0;
    if (::read(reader.get(), &target, sizeof target) == sizeof target) {
      ::kill(target, SIGHUP);
    }
  });
  const Outcome outcome = run([&] {
    const UniqueFd writer = open_file(ready, O_WRONLY, "fifo").value();
    const pid_t own = ::getpid();
    if (::write(writer.get(), &own, sizeof own) == sizeof own) {
      ::pause();
    }
  });
  killer.join();
  expect_last_words(outcome, ExitCode::kHangUp, "ended by SIGHUP sent by process " + std::to_string(sender),
                    "sighup");
}

TEST(Crash, a_mask_that_is_inherited_disables_no_handler) {
  const TempDir dir;
  for (const int signal : {SIGSEGV, SIGHUP, SIGABRT, SIGQUIT, SIGTERM, SIGTSTP, SIGPIPE, SIGXFSZ}) {
    const pid_t child = ::fork();
    if (child == 0) {
      std::signal(signal, SIG_DFL);  // a sanitizer has its own
      sigset_t all{};
      ::sigfillset(&all);
      sigset_t now{};
      const bool done = ::sigprocmask(SIG_SETMASK, &all, nullptr) == 0 && install_crash_handlers() &&
                        ::sigprocmask(SIG_SETMASK, nullptr, &now) == 0;
      ::_exit(done && ::sigismember(&now, signal) == 0 ? 0 : 97);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << signal << ": " << status;
  }
}

TEST(Crash, a_signal_that_ends_a_process_by_default_runs_the_hook_and_still_does) {
  for (const int signal : {SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSTKFLT,
                           SIGTERM, SIGINT, SIGFPE, SIGTRAP}) {
    const Outcome outcome = run([&] { ::kill(::getpid(), signal); });
    EXPECT_TRUE(WIFSIGNALED(outcome.status) && WTERMSIG(outcome.status) == signal)
        << signal << ": " << outcome.status;
    EXPECT_EQ(outcome.hook, "h") << signal;
  }
}

TEST(Crash, a_signal_that_is_ignored_stays_ignored) {
  for (const int signal : {SIGHUP, SIGQUIT, SIGINT, SIGTERM, SIGUSR1, SIGTSTP}) {
    const pid_t child = ::fork();
    if (child == 0) {
      std::signal(signal, SIG_IGN);
      const bool installed = install_crash_handlers().has_value();
      ::kill(::getpid(), signal);
      ::_exit(installed ? 0 : 97);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << signal << ": " << status;
  }
}

TEST(Crash, a_stop_runs_the_hook_each_time_and_the_process_goes_on_after_it) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::pipe2(fds.data(), O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  const pid_t child = ::fork();
  if (child == 0) {
    g_hook_pipe = writer.get();
    std::signal(SIGTSTP, SIG_DFL);
    if (!install_crash_handlers()) {
      ::_exit(97);
    }
    set_crash_hook(write_hook_mark);
    errno = EXDEV;
    ::raise(SIGTSTP);
    const bool kept = errno == EXDEV;
    ::raise(SIGTSTP);
    ::_exit(kept ? 0 : 98);
  }
  std::array<char, 8> marks{};
  for (int stops = 0; stops < 2; ++stops) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
    ASSERT_TRUE(WIFSTOPPED(status)) << status;
    EXPECT_EQ(::read(reader.get(), marks.data(), marks.size()), 1);
    ASSERT_EQ(::kill(child, SIGCONT), 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Crash, a_write_beyond_the_file_size_limit_fails_and_is_counted) {
  const TempDir dir;
  const UniqueFd file = open_file(dir.file("disk"), O_RDWR | O_CREAT, "disk").value();
  const Outcome outcome = run([&] {
    constexpr std::size_t kLimit = 4096;
    const rlimit limit{kLimit, kLimit};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) {
      ::_exit(97);
    }
    for (int i = 0; i < 2; ++i) {
      if (::pwrite(file.get(), "x", 1, kLimit) >= 0 || errno != EFBIG) {
        ::_exit(96);
      }
    }
    ::_exit(metrics().signals.sigxfsz.value() == 2 ? 0 : 95);
  });
  EXPECT_TRUE(exited_with(outcome, ExitCode::kOk)) << outcome.status;
  EXPECT_EQ(outcome.hook, "");
}

TEST(Crash, the_exit_codes_are_those_that_callers_know) {
  EXPECT_EQ(static_cast<int>(ExitCode::kOk), 0);
  EXPECT_EQ(static_cast<int>(ExitCode::kError), 1);
  EXPECT_EQ(static_cast<int>(ExitCode::kForbiddenSyscall), 148);
  EXPECT_EQ(static_cast<int>(ExitCode::kBusError), 149);
  EXPECT_EQ(static_cast<int>(ExitCode::kSegmentationFault), 150);
  EXPECT_EQ(static_cast<int>(ExitCode::kFileSizeLimit), 151);
  EXPECT_EQ(static_cast<int>(ExitCode::kBadConfiguration), 152);
  EXPECT_EQ(static_cast<int>(ExitCode::kBadArguments), 153);
  EXPECT_EQ(static_cast<int>(ExitCode::kCpuTimeLimit), 154);
  EXPECT_EQ(static_cast<int>(ExitCode::kHangUp), 156);
  EXPECT_EQ(static_cast<int>(ExitCode::kIllegalInstruction), 157);
}

TEST(Crash, a_memory_fault_names_its_address) {
  // The page is mapped before the fork, without any permission: the address is the same in the child.
  void* const page = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  const Outcome outcome = run([page] { *static_cast<volatile char*>(page) = 1; });
  // SAFETY: the address is only printed.
  const std::string address = hex(reinterpret_cast<std::uintptr_t>(page));
  expect_last_words(outcome, ExitCode::kSegmentationFault, "ended by SIGSEGV at address " + address,
                    "sigsegv");
  ::munmap(page, 4096);
}

TEST(Crash, a_system_call_that_a_filter_forbids_is_named_by_its_number) {
  const Outcome outcome = run([] {
    std::array<sock_filter, 4> program{{
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_getppid},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_TRAP},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    }};
    const sock_fprog filter{.len = program.size(), .filter = program.data()};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
      ::_exit(98);
    }
    ::syscall(SYS_getppid);
  });
  if (WIFEXITED(outcome.status) && WEXITSTATUS(outcome.status) == 98) {
    GTEST_SKIP() << "this host has no seccomp filters";
  }
  expect_last_words(outcome, ExitCode::kForbiddenSyscall,
                    "ended by SIGSYS: forbidden system call " + std::to_string(SYS_getppid), "num_faults");
}

// Recurses until the stack ends. The result depends on every frame, so that none can be left out.
[[gnu::noinline]] std::size_t overflow_stack(std::size_t depth) {
  std::array<volatile char, 1024> frame;
  frame[depth % frame.size()] = 1;
  return depth == SIZE_MAX ? 0 : overflow_stack(depth + 1) + static_cast<std::size_t>(frame[0]);
}

void expect_overflow_is_told(const std::function<void()>& body) {
  const Outcome outcome = run(body);
  EXPECT_TRUE(exited_with(outcome, ExitCode::kSegmentationFault)) << outcome.status;
  EXPECT_EQ(outcome.hook, "h");
  ASSERT_EQ(outcome.log.size(), 1U);
  EXPECT_NE(outcome.log[0].find("ended by SIGSEGV at address"), std::string::npos) << outcome.log[0];
}

TEST(Crash, an_overflow_of_the_stack_is_told) {
  expect_overflow_is_told([] { ::_exit(static_cast<int>(overflow_stack(0))); });
}

TEST(Crash, an_overflow_of_another_threads_stack_is_told_where_it_has_a_crash_stack) {
  expect_overflow_is_told([] {
    auto stack = CrashStack::create();
    std::thread([&stack] {
      const CrashStack::Use use(*stack);
      ::_exit(static_cast<int>(overflow_stack(0)));
    }).join();
  });
}

TEST(Crash, a_crash_stack_that_is_left_gives_the_thread_back_what_it_had) {
  auto stack = CrashStack::create();
  ASSERT_TRUE(stack.has_value());
  std::vector<char> former(std::size_t{1} << 16);
  stack_t before{};
  ASSERT_EQ(::sigaltstack(nullptr, &before), 0);
  const stack_t at_first = before;
  before = {};
  before.ss_sp = former.data();
  before.ss_size = former.size();
  ASSERT_EQ(::sigaltstack(&before, nullptr), 0);
  {
    const CrashStack::Use use(*stack);
    stack_t during{};
    ASSERT_EQ(::sigaltstack(nullptr, &during), 0);
    EXPECT_EQ(during.ss_flags & SS_DISABLE, 0);
    EXPECT_NE(during.ss_sp, before.ss_sp);
  }
  stack_t after{};
  ASSERT_EQ(::sigaltstack(nullptr, &after), 0);
  EXPECT_EQ(after.ss_sp, before.ss_sp);
  EXPECT_EQ(after.ss_flags, before.ss_flags);
  ASSERT_EQ(::sigaltstack(&at_first, nullptr), 0);
}

TEST(Crash, a_bus_error_names_what_lies_at_its_address_where_somebody_knows) {
  const auto touch_behind_the_end = [] {
    const UniqueFd file(::memfd_create("cut", MFD_CLOEXEC));
    const void* const mapped = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, file.get(), 0);
    static_cast<void>(*static_cast<const volatile char*>(mapped));
  };
  const auto words_with = [&](std::string_view (*name)(std::uintptr_t)) {
    const Outcome outcome = run([&] {
      set_address_names(name);
      touch_behind_the_end();
    });
    EXPECT_TRUE(exited_with(outcome, ExitCode::kBusError)) << outcome.status;
    return outcome.log.size() == 1 ? outcome.log[0] : "";
  };
  const std::string named = words_with([](std::uintptr_t) { return std::string_view("a file"); });
  EXPECT_NE(named.find(" of a file, which was cut short or cannot be read; exit code 149"), std::string::npos)
      << named;
  for (auto* const nobody : {+[](std::uintptr_t) { return std::string_view(); },
                             static_cast<std::string_view (*)(std::uintptr_t)>(nullptr)}) {
    const std::string nameless = words_with(nobody);
    EXPECT_EQ(nameless.find(" of "), std::string::npos) << nameless;
    EXPECT_NE(nameless.find("SIGBUS at address 0x"), std::string::npos) << nameless;
  }
  const Outcome other = run([] {
    set_address_names([](std::uintptr_t) { return std::string_view("a file"); });
    const void* const closed = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static_cast<void>(*static_cast<const volatile char*>(closed));
  });
  ASSERT_EQ(other.log.size(), 1U);
  EXPECT_EQ(other.log[0].find("a file"), std::string::npos) << other.log[0];
}

TEST(Crash, a_fault_on_another_thread_ends_the_process_as_well) {
  const Outcome outcome = run([] { std::thread([] { ::raise(SIGBUS); }).join(); });
  EXPECT_TRUE(exited_with(outcome, ExitCode::kBusError)) << outcome.status;
  EXPECT_EQ(outcome.hook, "h");
}

TEST(Crash, faults_on_many_threads_end_it_once) {
  const Outcome outcome = run([] {
    std::array<std::thread, 4> threads;
    for (auto& thread : threads) {
      thread = std::thread([] { ::raise(SIGILL); });
    }
    for (auto& thread : threads) {
      thread.join();
    }
  });
  EXPECT_TRUE(exited_with(outcome, ExitCode::kIllegalInstruction)) << outcome.status;
  EXPECT_EQ(outcome.hook, "h");
  EXPECT_EQ(outcome.log.size(), 1U);
  EXPECT_EQ(outcome.metrics.size(), 1U);
}

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
constexpr bool kThreadSanitizer = __has_feature(thread_sanitizer);
#else
constexpr bool kThreadSanitizer = false;
#endif

void* g_forbidden_page = nullptr;

TEST(Crash, a_fault_in_the_hook_still_ends_the_process_with_a_documented_code) {
  if (kThreadSanitizer) {
    GTEST_SKIP() << "ThreadSanitizer blocks all signals in a handler, whatever its SA_NODEFER";
  }
  g_forbidden_page = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(g_forbidden_page, MAP_FAILED);
  const Outcome outcome =
      run([] { ::raise(SIGSEGV); }, [] { *static_cast<volatile char*>(g_forbidden_page) = 1; });
  EXPECT_TRUE(exited_with(outcome, ExitCode::kSegmentationFault)) << outcome.status;
  ::munmap(g_forbidden_page, 4096);
}

TEST(Crash, an_abort_runs_the_hook_and_stays_an_abort) {
  const Outcome outcome = run([] { std::abort(); });
  EXPECT_TRUE(WIFSIGNALED(outcome.status));
  EXPECT_EQ(WTERMSIG(outcome.status), SIGABRT);
  EXPECT_EQ(outcome.hook, "h");
}

TEST(Crash, a_broken_pipe_is_an_error_of_the_write_and_is_counted) {
  const Outcome outcome = run([] {
    std::array<int, 2> fds{};
    if (::pipe2(fds.data(), O_CLOEXEC) != 0) {
      ::_exit(97);
    }
    ::close(fds[0]);
    const bool failed = ::write(fds[1], "x", 1) < 0 && errno == EPIPE;
    ::_exit(failed && metrics().signals.sigpipe.value() == 1 ? 0 : 96);
  });
  EXPECT_TRUE(exited_with(outcome, ExitCode::kOk)) << outcome.status;
}

TEST(Crash, with_the_log_off_only_the_code_tells) {
  const Outcome outcome = run([] {
    if (!configure_log(
            {.path = {}, .level = LogLevel::kOff, .show_level = {}, .show_origin = {}, .module = {}})) {
      ::_exit(97);
    }
    ::raise(SIGXCPU);
  });
  EXPECT_TRUE(exited_with(outcome, ExitCode::kCpuTimeLimit)) << outcome.status;
  EXPECT_TRUE(outcome.log.empty());
}

}  // namespace
}  // namespace mayfly
