#include "base/worker_thread.h"

#include <utility>

namespace mayfly {

Result<std::unique_ptr<WorkerThread>> WorkerThread::start(const std::string& name,
                                                          std::function<Result<void>()> confine) {
  std::unique_ptr<WorkerThread> worker(new WorkerThread);
  MAYFLY_TRY(worker->thread_.start(name, std::move(confine), [self = worker.get()] { self->main(); }));
  return worker;
}

WorkerThread::~WorkerThread() {
  const MutexLock lock(mutex_);
  ends_ = true;
  changed_.notify_all();
}

void WorkerThread::run(const std::function<void()>& task) {
  const MutexLock lock(mutex_);
  while (task_ != nullptr) {
    changed_.wait(mutex_);
  }
  task_ = &task;
  changed_.notify_all();
  while (task_ == &task) {
    changed_.wait(mutex_);
  }
}

void WorkerThread::main() noexcept {
  while (const std::function<void()>* const task = next()) {
    (*task)();
    const MutexLock lock(mutex_);
    task_ = nullptr;
    changed_.notify_all();
  }
}

// Waits for one; null when the thread is to end.
const std::function<void()>* WorkerThread::next() noexcept {
  const MutexLock lock(mutex_);
  while (task_ == nullptr && !ends_) {
    changed_.wait(mutex_);
  }
  return task_;
}

}  // namespace mayfly
