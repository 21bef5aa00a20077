#include "base/worker_thread.h"

#include <system_error>
#include <utility>

#include "base/thread_name.h"

namespace mayfly {

WorkerThread::WorkerThread(std::string name, std::function<Result<void>()> confine)
    : name_(std::move(name)), confine_(std::move(confine)) {}

Result<std::unique_ptr<WorkerThread>> WorkerThread::start(const std::string& name,
                                                          std::function<Result<void>()> confine) {
  std::unique_ptr<WorkerThread> worker(new WorkerThread(name, std::move(confine)));
  MAYFLY_TRY_ASSIGN(CrashStack crash_stack, CrashStack::create());
  worker->crash_stack_.emplace(std::move(crash_stack));
  try {
    worker->thread_ = std::thread([self = worker.get()] { self->main(); });
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "start the thread " + name);
  }
  return worker;
}

WorkerThread::~WorkerThread() {
  if (thread_.joinable()) {
    {
      const MutexLock lock(mutex_);
      ends_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }
}

Result<void> WorkerThread::wait_confined() {
  const MutexLock lock(mutex_);
  while (!confined_) {
    changed_.wait(mutex_);
  }
  return *confined_;
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
  const CrashStack::Use crash_stack(*crash_stack_);
  set_thread_name(name_);
  auto confined = confine_ ? confine_() : Result<void>();
  const bool fit = confined.has_value();
  {
    const MutexLock lock(mutex_);
    confined_ = std::move(confined);
    changed_.notify_all();
  }
  while (fit) {
    const std::function<void()>* const task = next();
    if (task == nullptr) {
      return;
    }
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
