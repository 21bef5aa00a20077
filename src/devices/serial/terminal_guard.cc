#include "devices/serial/terminal_guard.h"

#include <fcntl.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "base/crash.h"
#include "base/unique_fd.h"

namespace mayfly {
namespace {

// What a signal handler needs, written before `raw` says so.
struct Terminal {
  std::atomic<int> fd{-1};
  std::atomic<bool> raw{false};
  bool captured = false;
  pid_t own_group = 0;
  termios original{};
  termios raw_modes{};
};

Terminal& terminal() noexcept {
  static constinit Terminal instance;
  return instance;
}

bool same_modes(const termios& a, const termios& b) noexcept {
  return a.c_iflag == b.c_iflag && a.c_oflag == b.c_oflag && a.c_cflag == b.c_cflag &&
         a.c_lflag == b.c_lflag && a.c_cc[VMIN] == b.c_cc[VMIN] && a.c_cc[VTIME] == b.c_cc[VTIME];
}

}  // namespace

bool in_foreground(int fd, pid_t own_group) noexcept {
  const pid_t foreground = ::tcgetpgrp(fd);
  return foreground < 0 || foreground == own_group;
}

void ignore_signal_unless_handled(int signal) noexcept {
  struct sigaction action {};
  if (::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_DFL) {
    action.sa_handler = SIG_IGN;
    static_cast<void>(::sigaction(signal, &action, nullptr));
  }
}

void restore_terminal() noexcept {
  Terminal& state = terminal();
  if (!state.raw.exchange(false)) {
    return;
  }
  const int saved_errno = errno;
  const int fd = state.fd.load();
  termios now{};
  // Another foreground process (the shell, after `bg`) has its own modes set.
  if (in_foreground(fd, state.own_group) ||
      (::tcgetattr(fd, &now) == 0 && same_modes(now, state.raw_modes))) {
    // Not TCSADRAIN: a terminal stopped by Ctrl-S would keep the process from ending.
    static_cast<void>(::tcsetattr(fd, TCSANOW, &state.original));
  }
  errno = saved_errno;
}

Result<std::unique_ptr<TerminalGuard>> TerminalGuard::enter(int fd) {
  if (::isatty(fd) != 1) {
    return nullptr;
  }
  Terminal& state = terminal();
  if (state.fd.load() >= 0) {
    return fail(ErrorCode::kBusy, "make the terminal raw: it is already guarded");
  }
  UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!own.valid()) {
    return fail_errno(errno, "make the terminal raw");
  }
  for (const int signal : {SIGTTOU, SIGTTIN}) {
    ignore_signal_unless_handled(signal);
  }
  static const int registered = std::atexit(&restore_terminal);
  static_cast<void>(registered);
  state.captured = false;
  state.own_group = ::getpgrp();
  state.fd.store(own.release());
  set_crash_hook([] { restore_terminal(); });
  std::unique_ptr<TerminalGuard> guard(new TerminalGuard());
  MAYFLY_TRY(guard->refresh());
  return guard;
}

Result<void> TerminalGuard::refresh() {
  Terminal& state = terminal();
  const int fd = state.fd.load();
  if (!in_foreground(fd, state.own_group)) {
    return {};
  }
  if (!state.captured) {
    if (::tcgetattr(fd, &state.original) != 0) {
      return fail_errno(errno, "read the terminal's modes");
    }
    state.raw_modes = state.original;
    state.raw_modes.c_iflag &=
        ~static_cast<tcflag_t>(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    state.raw_modes.c_lflag &= ~static_cast<tcflag_t>(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
    state.raw_modes.c_cc[VMIN] = 1;
    state.raw_modes.c_cc[VTIME] = 0;
    state.captured = true;
  }
  // Before the modes change: a signal in between restores what is there.
  state.raw.store(true);
  if (::tcsetattr(fd, TCSANOW, &state.raw_modes) != 0) {
    const int error = errno;
    state.raw.store(false);
    return fail_errno(error, "make the terminal raw");
  }
  return {};
}

TerminalGuard::~TerminalGuard() {
  restore_terminal();
  set_crash_hook(nullptr);
  const UniqueFd closes(terminal().fd.exchange(-1));
}

}  // namespace mayfly
