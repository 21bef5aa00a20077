// An event registrar whose events and time a test makes by hand.
#pragma once

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "event/event_loop.h"

namespace mayfly::testing {

// Calls nothing by itself: notify() stands for a descriptor getting ready (report_readable() looks whether it
// is), advance() for time going by. Keeps
// the promises of EventRegistrar about watches destroyed or disabled by a callback, and watches and timers
// may outlive it. One thread.
class ManualRegistrar final : public EventRegistrar {
 public:
  Result<std::unique_ptr<Watch>> watch(int fd, Interest interest,
                                       std::function<void(Readiness)> callback) override {
    if (const auto error = take_failure()) {
      return tl::unexpected(*error);
    }
    if (watched(fd)) {
      return fail(ErrorCode::kIo, "watch a descriptor a second time");
    }
    auto entry = std::make_shared<WatchEntry>();
    entry->fd = fd;
    entry->interest = interest;
    entry->callback = std::move(callback);
    state_->watches.push_back(entry);
    return std::make_unique<ManualWatch>(std::move(entry));
  }

  Result<std::unique_ptr<Timer>> make_timer(std::function<void()> callback) override {
    if (const auto error = take_failure()) {
      return tl::unexpected(*error);
    }
    auto entry = std::make_shared<TimerEntry>();
    entry->callback = std::move(callback);
    state_->timers.push_back(entry);
    return std::make_unique<ManualTimer>(state_, std::move(entry));
  }

  // Makes the next watch() or make_timer() fail.
  void fail_next(Error error) { failure_ = std::move(error); }

  // Whether a live watch on `fd` exists, enabled or not.
  bool watched(int fd) { return find(fd) != nullptr; }
  // What `fd` is waited for, or nothing where it is not watched or disabled.
  std::optional<Interest> interest(int fd) {
    const auto entry = find(fd);
    return entry && entry->enabled ? std::optional(entry->interest) : std::nullopt;
  }

  // Reports `readiness` of `fd` once, as far as it is waited for. False where nobody was called.
  bool notify(int fd, Readiness readiness) {
    const auto entry = find(fd);
    if (!entry || !entry->enabled) {
      return false;
    }
    readiness.readable = readiness.readable && entry->interest != Interest::kWritable;
    readiness.writable = readiness.writable && entry->interest != Interest::kReadable;
    if (!readiness.readable && !readiness.writable && !readiness.hung_up) {
      return false;
    }
    entry->callback(readiness);
    return true;
  }
  // Waits until one of the descriptors that are waited for is readable in truth, `timeout_ms` at most, and
  // reports all that are. How many that was.
  std::size_t report_readable(int timeout_ms) {
    std::vector<pollfd> descriptors;
    for (const auto& weak : state_->watches) {
      if (const auto entry = weak.lock(); entry && entry->enabled && entry->interest != Interest::kWritable) {
        descriptors.push_back({.fd = entry->fd, .events = POLLIN, .revents = 0});
      }
    }
    if (::poll(descriptors.data(), descriptors.size(), timeout_ms) <= 0) {
      return 0;
    }
    std::size_t reported = 0;
    for (const pollfd& descriptor : descriptors) {
      reported += descriptor.revents != 0 && notify_readable(descriptor.fd) ? 1U : 0U;
    }
    return reported;
  }
  bool notify_readable(int fd) { return notify(fd, {.readable = true}); }
  bool notify_writable(int fd) { return notify(fd, {.writable = true}); }

  // Time since the registrar was made, and how many timers run.
  std::chrono::nanoseconds now() const { return state_->now; }
  std::size_t running_timers() {
    std::size_t count = 0;
    for (const auto& weak : state_->timers) {
      const auto entry = weak.lock();
      count += entry && entry->due ? 1U : 0U;
    }
    return count;
  }

  // Lets time go by and calls the timers that end in it, in order of their ends, those started by a callback
  // on the way included. A callback that starts its own timer with no delay again and again never lets it
  // return.
  void advance(std::chrono::nanoseconds by) {
    const std::chrono::nanoseconds end = state_->now + by;
    while (const auto next = earliest(end)) {
      state_->now = std::max(state_->now, *next->due);
      next->due.reset();
      next->callback();
    }
    state_->now = end;
  }

 private:
  struct WatchEntry {
    int fd = -1;
    Interest interest = Interest::kReadable;
    bool enabled = true;
    std::function<void(Readiness)> callback;
  };
  struct TimerEntry {
    std::optional<std::chrono::nanoseconds> due;
    std::function<void()> callback;
  };
  struct State {
    std::chrono::nanoseconds now{0};
    std::vector<std::weak_ptr<WatchEntry>> watches;
    std::vector<std::weak_ptr<TimerEntry>> timers;
  };

  class ManualWatch final : public Watch {
   public:
    explicit ManualWatch(std::shared_ptr<WatchEntry> entry) : entry_(std::move(entry)) {}
    ManualWatch(const ManualWatch&) = delete;
    ManualWatch& operator=(const ManualWatch&) = delete;
    ~ManualWatch() override {
      entry_->enabled = false;
      entry_->fd = -1;
    }
    Result<void> update(Interest interest, bool enabled) override {
      entry_->interest = interest;
      entry_->enabled = enabled;
      return {};
    }

   private:
    std::shared_ptr<WatchEntry> entry_;
  };

  class ManualTimer final : public Timer {
   public:
    ManualTimer(std::shared_ptr<State> state, std::shared_ptr<TimerEntry> entry)
        : state_(std::move(state)), entry_(std::move(entry)) {}
    ManualTimer(const ManualTimer&) = delete;
    ManualTimer& operator=(const ManualTimer&) = delete;
    ~ManualTimer() override { entry_->due.reset(); }
    Result<void> start(std::chrono::nanoseconds delay) override {
      entry_->due = state_->now + std::max(delay, std::chrono::nanoseconds{0});
      return {};
    }
    void cancel() override { entry_->due.reset(); }

   private:
    std::shared_ptr<State> state_;
    std::shared_ptr<TimerEntry> entry_;
  };

  std::shared_ptr<WatchEntry> find(int fd) {
    for (const auto& weak : state_->watches) {
      if (auto entry = weak.lock(); entry && entry->fd == fd) {
        return entry;
      }
    }
    return nullptr;
  }

  std::shared_ptr<TimerEntry> earliest(std::chrono::nanoseconds end) {
    std::shared_ptr<TimerEntry> first;
    for (const auto& weak : state_->timers) {
      auto entry = weak.lock();
      if (entry && entry->due && *entry->due <= end && (!first || *entry->due < *first->due)) {
        first = std::move(entry);
      }
    }
    return first;
  }

  std::optional<Error> take_failure() { return std::exchange(failure_, std::nullopt); }

  std::shared_ptr<State> state_ = std::make_shared<State>();
  std::optional<Error> failure_;
};

}  // namespace mayfly::testing
