// The process's last words: what happens at signals that end it.
#pragma once

#include <csignal>
#include <cstdint>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace mayfly {

// Installs handlers, once, at the start of the process:
// - SIGSYS, SIGBUS, SIGSEGV, SIGXCPU, SIGHUP and SIGILL write one line of log that names the signal, and the
//   address, the system call or the process that sent it; run the restore hook; set the signal's metric and
//   write a last line of metrics; and end the process with the code that ExitCode documents.
// - SIGABRT, SIGFPE, SIGTRAP, and every other standard signal that ends a process by default and can be
//   handled, run the restore hook and then do what they do by default. So do SIGTERM and SIGINT until an
//   event loop takes them.
// - SIGTSTP runs the restore hook and stops the process; what SIGCONT does is the event loop's.
// - SIGPIPE and SIGXFSZ are counted and do nothing else: the write fails with EPIPE or EFBIG. A guest that
//   fills a file up to the limit set for the process (RLIMIT_FSIZE) must not end the monitor.
// Those that do not report an error of the program's own (SIGHUP, SIGINT, SIGTSTP and so on) stay ignored
// where they were ignored before (nohup(1)). All are unblocked for the calling thread: a mask is inherited
// through execve(2).
// Handlers run on a stack of their own in the calling thread, so that an overflow of its stack is reported as
// well; in other threads on the thread's unless it has a CrashStack.
Result<void> install_crash_handlers();

// The handlers' stack for one more thread. Made before the thread starts, where an error can still be told;
// move-only. Costs nothing until a handler runs on it.
class CrashStack {
 public:
  // Error kExhausted where the host has no memory left to map.
  static Result<CrashStack> create();
  CrashStack(CrashStack&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)) {}
  CrashStack& operator=(CrashStack&&) = delete;
  CrashStack(const CrashStack&) = delete;
  CrashStack& operator=(const CrashStack&) = delete;
  ~CrashStack();

  // From its making to the thread's end, handlers of the calling thread run on `stack` (borrowed, to the
  // thread's end); where the thread had a stack for them before, to the end of this.
  class Use {
   public:
    explicit Use(const CrashStack& stack) noexcept;
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    stack_t before_{};
  };

 private:
  explicit CrashStack(void* memory) : memory_(memory) {}

  void* memory_;
};

// What to restore before the process ends by a signal (the terminal's mode); null: nothing. `hook` must be
// async-signal-safe. Thread-safe. An ordinary end of the process does not call it.
void set_crash_hook(void (*hook)());

// Who knows the names of system calls, for the line about a forbidden one; null: nobody, and it has the
// number alone. `name` must be async-signal-safe; an empty name is none. Thread-safe.
void set_syscall_names(std::string_view (*name)(int number));

// Who knows which file lies at an address, for the line about a bus error; null: nobody. `name` must be
// async-signal-safe, and what it answers must stay; an empty name is none. Thread-safe.
void set_address_names(std::string_view (*name)(std::uintptr_t address));

}  // namespace mayfly
