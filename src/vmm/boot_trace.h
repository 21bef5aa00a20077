// A timeline of the start, in the Chrome trace event format: open it in Perfetto (ui.perfetto.dev) or
// chrome://tracing.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

// Collects phases and marks from any thread and writes them out on demand. A null BootTrace* everywhere means
// that no trace was asked for and nothing is recorded.
class BootTrace {
 public:
  using Clock = std::chrono::steady_clock;

  // Opens the file, which is made with mode 0600 if need be, and empties it: a path that cannot be written is
  // found before anything runs, and a monitor that runs a guest may cut no file short. Never waits for the
  // reader of a FIFO. `start` is time zero of the timeline. Errors name the file.
  static Result<std::unique_ptr<BootTrace>> create(const std::string& path, Clock::time_point start);

  struct Phase {
    std::string_view name;
    Clock::time_point begin;
    Clock::time_point end;
    int thread_id;
  };

  // Something that lasted, on this thread to now or as it is said.
  void phase(std::string_view name, Clock::time_point begin);
  void phase(const Phase& phase);
  // Something that happened now. Only the first mark of a name is kept.
  void mark(std::string_view name);

  // All that was recorded so far: {"traceEvents": [...]}, times in microseconds. Once. Errors name the file;
  // kBusy where a FIFO does not take it at once.
  Result<void> write() const;

 private:
  struct Event {
    std::string name;
    Clock::time_point begin;
    Clock::duration length;  // zero for a mark
    bool is_mark;
    int thread_id;
  };
  BootTrace(UniqueFd file, const std::string& path, Clock::time_point start);
  void record(Event event);
  std::string text() const;

  const UniqueFd file_;
  const std::string path_;
  const Clock::time_point start_;
  mutable Mutex mutex_;  // a leaf: no other lock is taken under it
  std::vector<Event> events_ MAYFLY_GUARDED_BY(mutex_);
};

// Records the phase `name` from its making to its end.
class TracePhase {
 public:
  TracePhase(BootTrace* trace, std::string_view name)
      : trace_(trace),
        name_(name),
        begin_(trace == nullptr ? BootTrace::Clock::time_point() : BootTrace::Clock::now()) {}
  TracePhase(const TracePhase&) = delete;
  TracePhase& operator=(const TracePhase&) = delete;
  ~TracePhase() {
    if (trace_ != nullptr) {
      trace_->phase(name_, begin_);
    }
  }

 private:
  BootTrace* trace_;
  std::string_view name_;
  BootTrace::Clock::time_point begin_;
};

}  // namespace mayfly
