#include "event/signal_watch.h"

#include <poll.h>
#include <pthread.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <utility>

namespace mayfly {

Result<std::unique_ptr<SignalWatch>> SignalWatch::create(EventRegistrar& registrar,
                                                         std::span<const int> signals,
                                                         std::function<void(int)> callback) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : signals) {
    if (::sigaddset(&set, signal) != 0) {
      return fail_errno(errno, "watch signal " + std::to_string(signal));
    }
  }
  if (const int error = ::pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0) {
    return fail_errno(error, "block the signals to watch");
  }
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) {
    return fail_errno(errno, "create a signalfd");
  }
  const int raw = fd.get();
  std::unique_ptr<SignalWatch> watch(new SignalWatch(std::move(fd)));
  // One signal a call: the callback may destroy the watch, and the rest is reported in the next round.
  MAYFLY_TRY_ASSIGN(watch->watch_, registrar.watch(raw, Interest::kReadable,
                                                   [raw, callback = std::move(callback)](Readiness) {
                                                     signalfd_siginfo info{};
                                                     if (::read(raw, &info, sizeof(info)) == sizeof(info)) {
                                                       callback(static_cast<int>(info.ssi_signo));
                                                     }
                                                   }));
  return watch;
}

bool SignalWatch::pending() const {
  pollfd signals{.fd = fd_.get(), .events = POLLIN, .revents = 0};
  return ::poll(&signals, 1, 0) == 1;
}

}  // namespace mayfly
