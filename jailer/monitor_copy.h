// Copying the monitor into the jail, beside what else is to be done.
#pragma once

#include <pthread.h>

#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly::jail {

// A thread that copies one file to another: the longest single step of a jail, and nothing waits for it but
// the execution of the copy. A file of its own, also in the page cache: jails share no memory by way of the
// monitor.
class MonitorCopy {
 public:
  // `what` names the copy in the error.
  static Result<std::unique_ptr<MonitorCopy>> start(const UniqueFd& from, UniqueFd to, std::string what);
  // Waits for the thread.
  ~MonitorCopy();
  MonitorCopy(const MonitorCopy&) = delete;
  MonitorCopy& operator=(const MonitorCopy&) = delete;

  // Waits until all is copied and the copy is closed, so that it can be executed. What went wrong, once.
  Result<void> finish();

 private:
  MonitorCopy(const UniqueFd& from, UniqueFd to, std::string what)
      : from_(from), to_(std::move(to)), what_(std::move(what)) {}
  static void* main(void* self);
  Result<void> copy();

  const UniqueFd& from_;
  UniqueFd to_;
  std::string what_;
  Result<void> outcome_;
  std::optional<pthread_t> thread_;  // not a std::thread, which throws where none can be made
};

}  // namespace mayfly::jail
