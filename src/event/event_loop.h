// The monitor thread's event loop: epoll, one callback a descriptor, tasks posted from other threads, timers.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// What a watched descriptor is ready for.
enum class Interest : std::uint8_t { kReadable, kWritable, kReadableAndWritable };

struct Readiness {
  bool readable = false;
  bool writable = false;
  bool hung_up = false;  // the other end is gone, or the descriptor is in error
};

// Keeps a descriptor watched as long as it lives. Destroyed on the loop's thread only; it is legal to destroy
// it inside its own callback. May outlive the loop.
class Watch {
 public:
  virtual ~Watch() = default;
  // Changes what is waited for; `enabled` false stops all callbacks without forgetting the descriptor.
  virtual Result<void> update(Interest interest, bool enabled) = 0;
};

// What devices see of the loop. All calls on the loop's thread.
class EventRegistrar {
 public:
  virtual ~EventRegistrar() = default;
  // `fd` is borrowed and must stay open while the Watch lives. Level-triggered.
  virtual Result<std::unique_ptr<Watch>> watch(int fd, Interest interest,
                                               std::function<void(Readiness)> callback) = 0;
  // A one-shot timer, started and stopped through the object; CLOCK_MONOTONIC.
  class Timer {
   public:
    virtual ~Timer() = default;
    virtual Result<void> start(std::chrono::nanoseconds delay) = 0;
    virtual void cancel() = 0;
  };
  virtual Result<std::unique_ptr<Timer>> make_timer(std::function<void()> callback) = 0;
};

// Owns the epoll descriptor and the queue of posted tasks.
class EventLoop final : public EventRegistrar {
 public:
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

  // Dispatches until stop(). Errors: only what epoll itself reports (kIo).
  Result<void> run();

  // Makes run() return after the callback under way. Thread-safe and async-signal-safe.
  void stop();

 private:
  EventLoop();
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace mayfly
