// What one thread finds out and another waits for.
#pragma once

#include <optional>
#include <utility>

#include "base/mutex.h"

namespace mayfly {

template <typename T>
class Handover {
 public:
  // Once.
  void give(T value) {
    const MutexLock lock(mutex_);
    value_.emplace(std::move(value));
    given_.notify_all();
  }
  // Waits for it; once.
  T take() {
    const MutexLock lock(mutex_);
    while (!value_) {
      given_.wait(mutex_);
    }
    return std::move(*value_);
  }

 private:
  Mutex mutex_;  // a leaf
  CondVar given_;
  std::optional<T> value_ MAYFLY_GUARDED_BY(mutex_);
};

}  // namespace mayfly
