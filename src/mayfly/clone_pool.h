// The processes that a template keeps ready to become clones.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "event/event_loop.h"

namespace mayfly {

// A process that waits to become a clone, or is becoming one.
struct PoolProcess {
  pid_t pid = 0;
  UniqueFd channel;                                // clone_channel.h
  std::unique_ptr<Watch> watch;                    // of the channel: goes first
  std::chrono::steady_clock::time_point deadline;  // of what it is doing
  bool is_ready = false;
};

// One thread, that of the loop. A process whose channel goes while it waits ends.
class ClonePool {
 public:
  struct Calls {
    // Makes a process that lives at `channel`; returns in this one only.
    std::function<Result<pid_t>(UniqueFd channel)> fork_child;
    // There is a message of one of them, in the pool or taken, or its channel has closed.
    std::function<void(pid_t)> on_channel;
  };
  // Before all else. `registrar` is borrowed, and outlives what is in the pool or was taken.
  void open(EventRegistrar& registrar, Calls calls);

  // Makes processes until there are so many, each to be ready within `patience`. Errors: of the host's; those
  // that were made stay.
  Result<void> fill(std::size_t wanted, std::chrono::seconds patience);
  // Ends all that wait.
  void clear() { waiting_.clear(); }

  std::size_t size() const { return waiting_.size(); }
  std::size_t ready_count() const;
  bool contains(pid_t pid) const;

  // Tells the oldest of those that are ready its order, and takes it out. Those that cannot be told are out
  // as well. Errors: of the last of these; ECHILD where none is ready.
  Result<PoolProcess> tell(const std::string& order);
  // Hears one of them, for which it waits. Nothing where it is ready now; else it is out of the pool, and has
  // said this last: empty, or kFailed and why.
  std::optional<std::string> hear_from(pid_t pid);

  // Kills those that are not ready by their deadline. Each is heard of once more.
  void kill_overdue(std::chrono::steady_clock::time_point now) const;

 private:
  Result<void> add(std::chrono::seconds patience);

  EventRegistrar* registrar_ = nullptr;
  Calls calls_;
  std::list<PoolProcess> waiting_;  // the oldest first
};

}  // namespace mayfly
