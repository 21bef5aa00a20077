// The person's terminal: raw while the guest runs, as it was afterwards.
#pragma once

#include <sys/types.h>

#include <memory>

#include "base/result.h"

namespace mayfly {

// Puts the terminal's input side into raw mode for as long as it lives: each key reaches the guest at once,
// Ctrl-C included. The output side stays as it is, so that the monitor's own lines begin at the left edge.
//
// The terminal is restored by the destructor, by exit(), and by the crash handlers of base/crash.h, whose
// hook the guard takes while it lives. SIGTERM and SIGINT are the event loop's, which ends in the destructor.
// Nothing can restore the terminal after SIGKILL, _exit() or a signal that nobody handles; `stty sane` or
// `reset` does then.
//
// A process in the background touches no terminal that belongs to another: raw mode begins when refresh()
// finds it in the foreground, and a restore from the background happens only where the modes are still the
// guard's. SIGTTOU and SIGTTIN are ignored from enter() on where they had their default action, so that
// neither stops the monitor.
//
// One guard at a time. Not thread-safe but for restore_terminal().
class TerminalGuard {
 public:
  // Null where `fd` is no terminal. `fd` is borrowed for the call. Errors: kBusy where there is a guard
  // already; what tcgetattr and tcsetattr report.
  static Result<std::unique_ptr<TerminalGuard>> enter(int fd);
  ~TerminalGuard();
  TerminalGuard(const TerminalGuard&) = delete;
  TerminalGuard& operator=(const TerminalGuard&) = delete;

  // Raw again, if the process is in the foreground: after SIGCONT, or when it came there from the background.
  Result<void> refresh();

 private:
  TerminalGuard() = default;
};

// Restores the terminal if a guard has made it raw. Async-signal-safe, keeps errno; any thread, any number of
// times.
void restore_terminal() noexcept;

// Whether the process, of the process group `own_group`, is in the foreground of the terminal `fd`, or that
// is not its controlling terminal (then the question does not arise). The group is asked for beforehand: it
// stays what it is once a program runs (setpgid(2)).
bool in_foreground(int fd, pid_t own_group) noexcept;

// Ignores `signal` where it has its default action.
void ignore_signal_unless_handled(int signal) noexcept;

}  // namespace mayfly
