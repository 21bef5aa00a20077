#include "base/crash.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <string_view>

#include "base/check.h"
#include "base/exit_code.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/text.h"
#include "base/thread_name.h"

namespace mayfly {
namespace {

enum class Detail { kNone, kAddress, kSyscall };

struct FatalSignal {
  int number;
  std::string_view name;
  ExitCode code;
  Detail detail;
  Gauge& (*metric)();
};

constexpr std::array<FatalSignal, 7> kFatalSignals{{
    {SIGSYS, "SIGSYS", ExitCode::kForbiddenSyscall, Detail::kSyscall,
     []() -> Gauge& { return metrics().seccomp.num_faults; }},
    {SIGBUS, "SIGBUS", ExitCode::kBusError, Detail::kAddress,
     []() -> Gauge& { return metrics().signals.sigbus; }},
    {SIGSEGV, "SIGSEGV", ExitCode::kSegmentationFault, Detail::kAddress,
     []() -> Gauge& { return metrics().signals.sigsegv; }},
    {SIGXFSZ, "SIGXFSZ", ExitCode::kFileSizeLimit, Detail::kNone,
     []() -> Gauge& { return metrics().signals.sigxfsz; }},
    {SIGXCPU, "SIGXCPU", ExitCode::kCpuTimeLimit, Detail::kNone,
     []() -> Gauge& { return metrics().signals.sigxcpu; }},
    {SIGHUP, "SIGHUP", ExitCode::kHangUp, Detail::kNone, []() -> Gauge& { return metrics().signals.sighup; }},
    {SIGILL, "SIGILL", ExitCode::kIllegalInstruction, Detail::kAddress,
     []() -> Gauge& { return metrics().signals.sigill; }},
}};
constexpr std::array<int, 3> kAbortSignals{SIGABRT, SIGFPE, SIGTRAP};

std::atomic<void (*)()> g_hook{nullptr};
// The thread that is ending the process, once there is one. pthread_t is an address with glibc, never null.
std::atomic<pthread_t> g_ending{};
constexpr std::size_t kStackSize = 64UL * 1024;
alignas(16) std::array<char, kStackSize> g_stack;

void run_hook() {
  if (void (*const hook)() = g_hook.exchange(nullptr); hook != nullptr) {
    hook();
  }
}

void describe(TextBuffer& text, const FatalSignal& signal, const siginfo_t& info) {
  text.append("ended by ");
  text.append(signal.name);
  // A positive code comes from the kernel: sent by kill(2) there is a sender instead of a fault.
  if (info.si_code <= 0) {
    text.append(" sent by process ");
    text.append_decimal(static_cast<std::uint64_t>(info.si_pid));
  } else if (signal.detail == Detail::kAddress) {
    text.append(" at address 0x");
    // SAFETY: the address is only printed.
    text.append_hex(reinterpret_cast<std::uintptr_t>(info.si_addr));
  } else if (signal.detail == Detail::kSyscall) {
    text.append(": forbidden system call ");
    text.append_decimal(static_cast<std::uint64_t>(info.si_syscall));
  }
  text.append("; exit code ");
  text.append_decimal(static_cast<std::uint64_t>(signal.code));
}

// Only async-signal-safe calls from here on.
void on_fatal_signal(int number, siginfo_t* info, void*) {
  const FatalSignal* signal = kFatalSignals.data();
  while (signal->number != number) {
    ++signal;
  }
  pthread_t nobody{};
  if (const pthread_t self = ::pthread_self(); !g_ending.compare_exchange_strong(nobody, self)) {
    if (::pthread_equal(nobody, self) != 0) {
      ::_exit(static_cast<int>(signal->code));  // a fault in what follows
    }
    // Another thread is at it and ends this one in a moment. No call waits here: the thread's seccomp filter
    // may allow none.
    // SAFETY: orders nothing; it only makes the loop one that a compiler must not take away.
    for (;;) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
  }
  run_hook();  // first: should the rest fail, the terminal is in order
  std::array<char, 160> storage{};
  TextBuffer text(storage);
  describe(text, *signal, *info);
  signal->metric().set(1);
  log_detail::write_from_signal(LogLevel::kError, MAYFLY_LOG_ORIGIN, text.view());
  metrics().flush_from_signal();
  ::_exit(static_cast<int>(signal->code));
}

// SA_RESETHAND has put the default action back, and the signal is not blocked (SA_NODEFER).
void on_abort_signal(int number) {
  run_hook();
  ::raise(number);
}

void on_sigpipe(int) {
  metrics().signals.sigpipe.add();
}

Result<void> install(int number, const struct sigaction& action) {
  if (::sigaction(number, &action, nullptr) != 0) {
    return fail_errno(errno, "install a handler for signal " + std::to_string(number));
  }
  return {};
}

}  // namespace

Result<void> install_crash_handlers() {
  stack_t stack{};
  stack.ss_sp = g_stack.data();
  stack.ss_size = g_stack.size();
  if (::sigaltstack(&stack, nullptr) != 0) {
    return fail_errno(errno, "set a stack for signal handlers");
  }
  // The first call asks the kernel: not in a handler, where the filter may forbid it.
  static_cast<void>(thread_name());

  struct sigaction fatal {};
  fatal.sa_sigaction = on_fatal_signal;
  // Not deferred, so that a fault within the handler is seen as one.
  fatal.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  ::sigemptyset(&fatal.sa_mask);
  for (const FatalSignal& signal : kFatalSignals) {
    struct sigaction before {};
    if (signal.number == SIGHUP && ::sigaction(SIGHUP, nullptr, &before) == 0 &&
        before.sa_handler == SIG_IGN) {
      continue;
    }
    MAYFLY_TRY(install(signal.number, fatal));
  }
  struct sigaction abort_action {};
  abort_action.sa_handler = on_abort_signal;
  abort_action.sa_flags = static_cast<int>(SA_RESETHAND | SA_NODEFER | SA_ONSTACK);
  ::sigemptyset(&abort_action.sa_mask);
  for (const int number : kAbortSignals) {
    MAYFLY_TRY(install(number, abort_action));
  }
  struct sigaction pipe_action {};
  pipe_action.sa_handler = on_sigpipe;
  pipe_action.sa_flags = SA_RESTART;
  ::sigemptyset(&pipe_action.sa_mask);
  return install(SIGPIPE, pipe_action);
}

Result<CrashStack> CrashStack::create() {
  void* const memory =
      ::mmap(nullptr, kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) {
    return fail_errno(errno, "map a stack for a thread's signal handlers");
  }
  return CrashStack(memory);
}

CrashStack::~CrashStack() {
  if (memory_ != nullptr) {
    ::munmap(memory_, kStackSize);
  }
}

CrashStack::Use::Use(const CrashStack& stack) noexcept {
  stack_t own{};
  own.ss_sp = stack.memory_;
  own.ss_size = kStackSize;
  MAYFLY_CHECK(::sigaltstack(&own, &before_) == 0, "a thread can change the stack of its signal handlers");
}

// What was there before comes back (a sanitizer's runtime has one of its own and takes it down itself).
CrashStack::Use::~Use() {
  MAYFLY_CHECK(::sigaltstack(&before_, nullptr) == 0, "a thread leaves the stack of its signal handlers");
}

void set_crash_hook(void (*hook)()) {
  g_hook.store(hook);
}

}  // namespace mayfly
