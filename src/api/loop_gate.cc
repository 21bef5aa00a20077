#include "api/loop_gate.h"

#include <memory>

namespace mayfly::api {

// The task, its sender's, is not touched once the sender has gone: the loop's thread both runs tasks and
// calls close(), so that no task is under way or still to come when senders are let go by it.
bool LoopGate::run(const std::function<void()>& task) {
  const auto done = std::make_shared<bool>(false);
  loop_.post([this, done, &task] {
    task();
    const MutexLock lock(mutex_);
    *done = true;
    changed_.notify_all();
  });
  const MutexLock lock(mutex_);
  while (!*done && !closed_) {
    changed_.wait(mutex_);
  }
  return *done;
}

void LoopGate::close() {
  const MutexLock lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

}  // namespace mayfly::api
