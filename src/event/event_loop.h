// The monitor thread's event loop: epoll, one callback a descriptor, tasks posted from other threads, timers.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// What a descriptor is waited for to be; hang-ups are always reported.
enum class Interest : std::uint8_t { kReadable, kWritable, kReadableAndWritable, kHangUp };

// What a watched descriptor is ready for.
struct Readiness {
  bool readable = false;
  bool writable = false;
  bool hung_up = false;  // the other end is gone, or the descriptor is in error
};

// Keeps a descriptor watched as long as it lives. Destroyed on the loop's thread only; it is legal to destroy
// it inside its own callback, or inside another's while it is ready itself: it is not called any more. May
// outlive the loop (then it does nothing).
class Watch {
 public:
  virtual ~Watch() = default;
  // Changes what is waited for; `enabled` false stops all callbacks without forgetting the descriptor, those
  // for a hang-up included. Errors: kBusy where the loop is gone, what epoll reports (kIo) otherwise; the
  // former state is kept then.
  virtual Result<void> update(Interest interest, bool enabled) = 0;
};

// What devices see of the loop. All calls on the loop's thread.
class EventRegistrar {
 public:
  virtual ~EventRegistrar() = default;
  // Calls `callback` whenever `fd` is ready for `interest`, for as long as it is (level-triggered), and also
  // where it is hung up: a callback that cannot clear that state destroys or disables its watch. `fd` is
  // borrowed and must stay open while the Watch lives; it can be watched once. Errors: kPermission where
  // epoll cannot wait for such a descriptor (a regular file), kInvalidArgument for one that is not open.
  virtual Result<std::unique_ptr<Watch>> watch(int fd, Interest interest,
                                               std::function<void(Readiness)> callback) = 0;
  // A one-shot timer, started and stopped through the object; CLOCK_MONOTONIC. Starting a running timer moves
  // its end. It does not fire after cancel() or its destruction, and may be destroyed in its own callback.
  class Timer {
   public:
    virtual ~Timer() = default;
    // A delay of zero or less fires in the next round.
    virtual Result<void> start(std::chrono::nanoseconds delay) = 0;
    virtual void cancel() = 0;
  };
  virtual Result<std::unique_ptr<Timer>> make_timer(std::function<void()> callback) = 0;
};

// Owns the epoll descriptor and the queue of posted tasks. Callbacks and tasks must not throw. A callback may
// register, change and destroy watches and timers, post tasks and stop the loop, but neither run nor destroy
// it.
class EventLoop final : public EventRegistrar {
 public:
  // The most posted tasks that one round runs before it looks at the descriptors again.
  static constexpr int kTasksPerRound = 32;

  static Result<std::unique_ptr<EventLoop>> create();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;
  ~EventLoop() override;

  Result<std::unique_ptr<Watch>> watch(int fd, Interest interest,
                                       std::function<void(Readiness)> callback) override;
  Result<std::unique_ptr<Timer>> make_timer(std::function<void()> callback) override;

  // Runs `task` on the loop's thread, in order of posting. Thread-safe; never blocks. Tasks that are still
  // queued when the loop is destroyed are dropped.
  void post(std::function<void()> task);

  // Dispatches until stop(); can be called again then. Errors: only what epoll itself reports (kIo).
  Result<void> run();

  // Makes run() return after the callback under way, or at once if it is called only later. Thread-safe and
  // async-signal-safe.
  void stop();

 private:
  struct State;
  class LoopWatch;
  class LoopTimer;
  explicit EventLoop(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace mayfly
