// A thread that does for others what they may not do themselves, or not while others wait for them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "base/result.h"
#include "base/side_thread.h"

namespace mayfly {

class WorkerThread {
 public:
  // `confine` is called on the thread first: what it takes away is missing from then on. May be empty. Error
  // kExhausted where the host has no thread left.
  static Result<std::unique_ptr<WorkerThread>> start(const std::string& name,
                                                     std::function<Result<void>()> confine);
  WorkerThread(const WorkerThread&) = delete;
  WorkerThread& operator=(const WorkerThread&) = delete;
  // Waits for the task under way. Nobody waits in run() any more.
  ~WorkerThread();

  // Waits until `confine` has been called, and answers its error: then the thread takes no tasks.
  Result<void> wait_confined() { return thread_.wait_confined(); }

  // After wait_confined(). Runs `task` there, after those of others, and comes back when it has ended. Any
  // thread but its own. `task` must not throw.
  void run(const std::function<void()>& task);

 private:
  WorkerThread() = default;
  void main() noexcept;
  const std::function<void()>* next() noexcept;

  Mutex mutex_;  // a leaf: not held while a task runs
  CondVar changed_;
  const std::function<void()>* task_ MAYFLY_GUARDED_BY(mutex_) = nullptr;
  bool ends_ MAYFLY_GUARDED_BY(mutex_) = false;
  SideThread thread_;  // last: everything above is there before it starts
};

}  // namespace mayfly
