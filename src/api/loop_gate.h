// A MonitorGate into an event loop.
#pragma once

#include <functional>

#include "api/monitor_gate.h"
#include "base/mutex.h"
#include "event/event_loop.h"

namespace mayfly::api {

// `loop` is borrowed and outlives every call of run().
class LoopGate final : public MonitorGate {
 public:
  explicit LoopGate(EventLoop& loop) : loop_(loop) {}

  // Any thread but the loop's own.
  bool run(const std::function<void()>& task) override;
  // Makes all calls of run(), now and later, give false. Called by the thread that ran the loop, which runs
  // no more.
  void close();

 private:
  EventLoop& loop_;
  Mutex mutex_;  // a leaf: not held while a task runs
  CondVar changed_;
  bool closed_ MAYFLY_GUARDED_BY(mutex_) = false;
};

}  // namespace mayfly::api
