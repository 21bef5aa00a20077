// A MonitorGate into an event loop.
#pragma once

#include <atomic>
#include <functional>
#include <utility>

#include "api/monitor_gate.h"
#include "base/mutex.h"
#include "event/event_loop.h"

namespace mayfly::api {

// `loop` is borrowed and outlives every call of run().
class LoopGate final : public MonitorGate {
 public:
  // `asked_to_end` says whether somebody has asked for the end whom the loop has not heard yet. Thread-safe;
  // may be empty.
  explicit LoopGate(EventLoop& loop, std::function<bool()> asked_to_end = {})
      : loop_(loop), asked_to_end_(std::move(asked_to_end)) {}

  // Any thread but the loop's own.
  bool run(const std::function<void()>& task) override;
  bool ending() const override { return closed_ || (asked_to_end_ && asked_to_end_()); }
  // Makes all calls of run(), now and later, give false. Called by the thread that ran the loop, which runs
  // no more.
  void close();

 private:
  EventLoop& loop_;
  const std::function<bool()> asked_to_end_;
  Mutex mutex_;  // a leaf: not held while a task runs
  CondVar changed_;
  std::atomic<bool> closed_ = false;  // written with mutex_ held
};

}  // namespace mayfly::api
