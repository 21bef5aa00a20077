// The way from the API's thread to the monitor's: functions that run there while their sender waits.
#pragma once

#include <functional>

namespace mayfly::api {

class MonitorGate {
 public:
  virtual ~MonitorGate() = default;
  // Runs `task` on the monitor's thread and comes back when it has ended. False where it will not run, as the
  // monitor is ending. `task` must not throw.
  virtual bool run(const std::function<void()>& task) = 0;
  // Whether it is ending, or was asked to and has not come to it, as tasks hold it up: what takes long is to
  // be given up. Any thread; costs at most a system call.
  virtual bool ending() const = 0;
};

}  // namespace mayfly::api
