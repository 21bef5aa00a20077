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

constexpr std::array<FatalSignal, 6> kFatalSignals{{
    {SIGSYS, "SIGSYS", ExitCode::kForbiddenSyscall, Detail::kSyscall,
     []() -> Gauge& { return metrics().seccomp.num_faults; }},
    {SIGBUS, "SIGBUS", ExitCode::kBusError, Detail::kAddress,
     []() -> Gauge& { return metrics().signals.sigbus; }},
    {SIGSEGV, "SIGSEGV", ExitCode::kSegmentationFault, Detail::kAddress,
     []() -> Gauge& { return metrics().signals.sigsegv; }},
    {SIGXCPU, "SIGXCPU", ExitCode::kCpuTimeLimit, Detail::kNone,
     []() -> Gauge& { return metrics().signals.sigxcpu; }},
    {SIGHUP, "SIGHUP", ExitCode::kHangUp, Detail::kNone, []() -> Gauge& { return metrics().signals.sighup; }},
    {SIGILL, "SIGILL", ExitCode::kIllegalInstruction, Detail::kAddress,
     []() -> Gauge& { return metrics().signals.sigill; }},
}};
// Those that a fault of the program's own raises, and those that only others send.
constexpr std::array<int, 3> kAbortSignals{SIGABRT, SIGFPE, SIGTRAP};
constexpr std::array<int, 11> kEndingSignals{SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM,   SIGVTALRM, SIGPROF,
                                             SIGIO,   SIGPWR,  SIGTERM, SIGSTKFLT, SIGINT};

std::atomic<void (*)()> g_hook{nullptr};
std::atomic<std::string_view (*)(int)> g_syscall_names{nullptr};
std::atomic<std::string_view (*)(std::uintptr_t)> g_address_names{nullptr};
// The process's own id: a handler cannot ask the kernel, the filter may forbid it.
std::atomic<pid_t> g_own_id{0};
// The thread that is ending the process, once there is one. pthread_t is an address with glibc, never null.
std::atomic<pthread_t> g_ending{};
constexpr std::size_t kStackSize = 64UL * 1024;
alignas(16) std::array<char, kStackSize> g_stack;

void call(void (*hook)()) {
  if (hook != nullptr) {
    hook();
  }
}

// Once: a fault within the hook must not lead back to it.
void run_last_hook() {
  call(g_hook.exchange(nullptr));
}

void describe(TextBuffer& text, const FatalSignal& signal, const siginfo_t& info) {
  text.append("ended by ");
  text.append(signal.name);
  // A positive code comes from the kernel: sent by kill(2) there is a sender instead of a fault.
  if (info.si_code <= 0) {
    if (info.si_pid != g_own_id.load()) {
      text.append(" sent by process ");
      text.append_decimal(static_cast<std::uint64_t>(info.si_pid));
    }
  } else if (signal.detail == Detail::kAddress) {
    text.append(" at address 0x");
    // SAFETY: the address is only printed.
    const auto address = reinterpret_cast<std::uintptr_t>(info.si_addr);
    text.append_hex(address);
    const auto names = g_address_names.load();
    if (signal.number == SIGBUS && names != nullptr && !names(address).empty()) {
      text.append(" of ");
      text.append(names(address));
      text.append(", which was cut short or cannot be read");
    }
  } else if (signal.detail == Detail::kSyscall) {
    text.append(": forbidden system call ");
    const auto names = g_syscall_names.load();
    const std::string_view name = names != nullptr ? names(info.si_syscall) : std::string_view();
    text.append(name);
    text.append(name.empty() ? "" : " (");
    // The number is unsigned to the kernel.
    text.append_decimal(static_cast<std::uint32_t>(info.si_syscall));
    text.append(name.empty() ? "" : ")");
  }
  text.append("; exit code ");
  text.append_decimal(static_cast<std::uint64_t>(signal.code));
}

// For a thread that may not even end the process: each try to is a signal, whose handler tries again. The
// kernel ends a process by SIGSEGV when a signal's frame does not fit onto the stack of its handlers any
// more, as long as the stack pointer is still on it: it is moved near to that stack's end.
[[noreturn, gnu::noinline]] void end_by_overflow(const stack_t& stack) {
  constexpr std::uintptr_t kLeft = 256;  // bytes, fewer than any frame
  // SAFETY: addresses as numbers.
  const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  const auto end = reinterpret_cast<std::uintptr_t>(stack.ss_sp) + kLeft;
  // NOLINTNEXTLINE(clang-analyzer-security.insecureAPI.alloca): it is the stack pointer that is meant
  void* const lowered = here > end ? __builtin_alloca(here - end) : nullptr;
  // SAFETY: nothing is done; the compiler must not take the memory away.
  asm volatile("" : : "r"(lowered) : "memory");
  __builtin_trap();
}

std::atomic<bool> g_cannot_end{false};

// Only async-signal-safe calls from here on.
void on_fatal_signal(int number, siginfo_t* info, void* context) {
  const FatalSignal* signal = kFatalSignals.data();
  while (signal->number != number) {
    ++signal;
  }
  pthread_t nobody{};
  if (const pthread_t self = ::pthread_self(); !g_ending.compare_exchange_strong(nobody, self)) {
    if (::pthread_equal(nobody, self) != 0) {
      if (g_cannot_end.exchange(true)) {
        end_by_overflow(static_cast<const ucontext_t*>(context)->uc_stack);
      }
      ::_exit(static_cast<int>(signal->code));  // a fault in what follows
    }
    // Another thread is at it and ends this one in a moment. No call waits here: the thread's seccomp filter
    // may allow none.
    // SAFETY: orders nothing; it only makes the loop one that a compiler must not take away.
    for (;;) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
  }
  run_last_hook();  // first: should the rest fail, the terminal is in order
  std::array<char, 512> storage{};
  TextBuffer text(storage);
  describe(text, *signal, *info);
  signal->metric().set(1);
  log_detail::write_from_signal(LogLevel::kError, MAYFLY_LOG_ORIGIN, text.view());
  metrics().flush_from_signal();
  ::_exit(static_cast<int>(signal->code));
}

// SA_RESETHAND has put the default action back, and the signal is not blocked (SA_NODEFER).
void on_abort_signal(int number) {
  run_last_hook();
  ::raise(number);
}

// SIGSTOP, whose action nobody needs to put in place first and take back afterwards.
void on_stop_signal(int) {
  const int saved_errno = errno;
  call(g_hook.load());
  ::raise(SIGSTOP);
  errno = saved_errno;
}

void on_sigpipe(int) {
  metrics().signals.sigpipe.add();
}

void on_sigxfsz(int) {
  metrics().signals.sigxfsz.add();
}

struct sigaction action_of(void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  ::sigemptyset(&action.sa_mask);
  return action;
}

bool is_ignored(int number) {
  struct sigaction action {};
  return ::sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

Result<void> install(int number, const struct sigaction& action) {
  if (::sigaction(number, &action, nullptr) != 0) {
    return fail_errno(errno, "install a handler for signal " + std::to_string(number));
  }
  return {};
}

Result<void> install_unless_ignored(int number, const struct sigaction& action) {
  return is_ignored(number) ? Result<void>() : install(number, action);
}

Result<void> unblock_handled() {
  sigset_t handled{};
  ::sigemptyset(&handled);
  for (const FatalSignal& signal : kFatalSignals) {
    ::sigaddset(&handled, signal.number);
  }
  for (const int number : kAbortSignals) {
    ::sigaddset(&handled, number);
  }
  for (const int number : kEndingSignals) {
    ::sigaddset(&handled, number);
  }
  for (const int number : {SIGTSTP, SIGPIPE, SIGXFSZ}) {
    ::sigaddset(&handled, number);
  }
  if (const int error = ::pthread_sigmask(SIG_UNBLOCK, &handled, nullptr); error != 0) {
    return fail_errno(error, "unblock the signals that are handled");
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
  g_own_id.store(::getpid());

  struct sigaction fatal {};
  fatal.sa_sigaction = on_fatal_signal;
  // Not deferred, so that a fault within the handler is seen as one.
  fatal.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  ::sigemptyset(&fatal.sa_mask);
  for (const FatalSignal& signal : kFatalSignals) {
    MAYFLY_TRY(signal.number == SIGHUP ? install_unless_ignored(SIGHUP, fatal)
                                       : install(signal.number, fatal));
  }
  const auto abort_action =
      action_of(on_abort_signal, static_cast<int>(SA_RESETHAND | SA_NODEFER | SA_ONSTACK));
  for (const int number : kAbortSignals) {
    MAYFLY_TRY(install(number, abort_action));
  }
  for (const int number : kEndingSignals) {
    MAYFLY_TRY(install_unless_ignored(number, abort_action));
  }
  MAYFLY_TRY(install_unless_ignored(SIGTSTP, action_of(on_stop_signal, SA_RESTART | SA_ONSTACK)));
  MAYFLY_TRY(install(SIGPIPE, action_of(on_sigpipe, SA_RESTART | SA_ONSTACK)));
  MAYFLY_TRY(install(SIGXFSZ, action_of(on_sigxfsz, SA_RESTART | SA_ONSTACK)));
  return unblock_handled();
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

// What was there before comes back: a sanitizer's runtime has one of its own and takes it down itself. Others
// have none, and what is left of the thread needs no system call for it.
CrashStack::Use::~Use() {
  if ((before_.ss_flags & SS_DISABLE) == 0) {
    MAYFLY_CHECK(::sigaltstack(&before_, nullptr) == 0, "a thread leaves the stack of its signal handlers");
  }
}

void set_crash_hook(void (*hook)()) {
  g_hook.store(hook);
}

void set_address_names(std::string_view (*name)(std::uintptr_t)) {
  g_address_names.store(name);
}

void set_syscall_names(std::string_view (*name)(int number)) {
  g_syscall_names.store(name);
}

}  // namespace mayfly
