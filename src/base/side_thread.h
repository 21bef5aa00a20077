// A thread that works beside others, confined before it does, and can be told to stop at any moment.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "base/crash.h"
#include "base/mutex.h"
#include "base/result.h"

namespace mayfly {

class SideThread {
 public:
  SideThread() = default;
  SideThread(const SideThread&) = delete;
  SideThread& operator=(const SideThread&) = delete;
  ~SideThread() { stop(); }

  // Starts it, once, under that name (15 bytes), with a CrashStack. `confine`, where there is one, is called
  // first on the thread: what it takes away is missing from then on. Where it fails, `body` is not run.
  // `body` does not throw. Error kExhausted where the host has no more threads.
  Result<void> start(const std::string& name, std::function<Result<void>()> confine,
                     std::function<void()> body);

  // Waits until `confine` has been called, and answers its error. After a start() that succeeded.
  Result<void> wait_confined();

  // Never blocks.
  void request_stop();
  // Waits for its end as well. Does nothing where it was not started.
  void stop();

  // For `body`: whether to end; and a sleep of at most so long, false where it is to end.
  bool stopping() const { return stopping_.load(std::memory_order_relaxed); }
  bool sleep(std::chrono::nanoseconds time);

 private:
  Mutex mutex_;  // a leaf
  CondVar changed_;
  std::atomic<bool> stopping_ = false;                              // written with mutex_ held
  std::optional<Result<void>> confined_ MAYFLY_GUARDED_BY(mutex_);  // once it is known
  std::optional<CrashStack> crash_stack_;
  std::thread thread_;
};

}  // namespace mayfly
