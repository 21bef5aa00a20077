#include "mayfly/clone_pool.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "mayfly/clone_channel.h"

namespace mayfly {

void ClonePool::open(EventRegistrar& registrar, Calls calls) {
  registrar_ = &registrar;
  calls_ = std::move(calls);
}

Result<void> ClonePool::fill(std::size_t wanted, std::chrono::seconds patience) {
  while (waiting_.size() < wanted) {
    MAYFLY_TRY(add(patience));
  }
  return {};
}

Result<void> ClonePool::add(std::chrono::seconds patience) {
  MAYFLY_TRY_ASSIGN(auto ends, make_clone_channel());
  auto& [ours, theirs] = ends;
  MAYFLY_TRY_ASSIGN(const pid_t pid, calls_.fork_child(std::move(theirs)));
  // Where it fails, the channel's end ends the child.
  MAYFLY_TRY_ASSIGN(auto watch,
                    registrar_->watch(ours.get(), Interest::kReadable,
                                      [this, pid](Readiness /*ready*/) { calls_.on_channel(pid); }));
  waiting_.push_back({.pid = pid,
                      .channel = std::move(ours),
                      .watch = std::move(watch),
                      .deadline = std::chrono::steady_clock::now() + patience});
  return {};
}

std::size_t ClonePool::ready_count() const {
  return static_cast<std::size_t>(std::ranges::count(waiting_, true, &PoolProcess::is_ready));
}

bool ClonePool::contains(pid_t pid) const {
  return std::ranges::find(waiting_, pid, &PoolProcess::pid) != waiting_.end();
}

Result<PoolProcess> ClonePool::tell(const std::string& order) {
  int error = ECHILD;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    const auto child = it++;
    if (!child->is_ready) {
      continue;
    }
    const bool told = ::write(child->channel.get(), order.data(), order.size()) >= 0;
    error = errno;
    PoolProcess taken = std::move(*child);
    waiting_.erase(child);
    if (told) {
      return taken;
    }
  }
  return fail_errno(error, "tell a clone's process who it is");
}

std::optional<std::string> ClonePool::hear_from(pid_t pid) {
  const auto child = std::ranges::find(waiting_, pid, &PoolProcess::pid);
  std::string message = hear(child->channel);
  if (message == std::string_view(&kReady, 1)) {
    child->is_ready = true;
    return std::nullopt;
  }
  waiting_.erase(child);
  return message;
}

void ClonePool::kill_overdue(std::chrono::steady_clock::time_point now) const {
  for (const PoolProcess& child : waiting_) {
    if (!child.is_ready && child.deadline <= now) {
      ::kill(child.pid, SIGKILL);
    }
  }
}

}  // namespace mayfly
