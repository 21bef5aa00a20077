// Signals as events of the loop: no handler, no code in signal context.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "base/unique_fd.h"
#include "event/event_loop.h"

namespace mayfly {

// Calls back on the loop's thread for each of a set of signals that reaches the process (signalfd). Destroyed
// on the loop's thread.
class SignalWatch {
 public:
  // Blocks `signals` in the calling thread: call it before any other thread is started, as threads inherit
  // the mask and a thread that does not block a signal can still be killed by it. They stay blocked for good,
  // so that one which is pending at the end of the watch does no harm. `callback` gets the signal's number;
  // several of the same signal may be reported as one.
  static Result<std::unique_ptr<SignalWatch>> create(EventRegistrar& registrar, std::span<const int> signals,
                                                     std::function<void(int)> callback);

  // Whether one of them has reached the process and waits for the loop. Any thread that blocks them.
  bool pending() const;

 private:
  explicit SignalWatch(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
  std::unique_ptr<Watch> watch_;  // after fd_: goes first
};

}  // namespace mayfly
