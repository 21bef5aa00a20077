#include "event/event_loop.h"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <deque>
#include <unordered_map>
#include <utility>

#include "base/mutex.h"

namespace mayfly {
namespace {

// epoll's name for the loop's own eventfd; watches are numbered from 1 on.
constexpr std::uint64_t kWakeToken = 0;
constexpr int kEventsPerRound = 64;

std::uint32_t epoll_bits(Interest interest) {
  switch (interest) {
    case Interest::kReadable:
      return EPOLLIN;
    case Interest::kWritable:
      return EPOLLOUT;
    case Interest::kReadableAndWritable:
      return EPOLLIN | EPOLLOUT;
    case Interest::kHangUp:
      return 0;
  }
  return 0;
}

Readiness readiness_of(std::uint32_t events) {
  return {.readable = (events & EPOLLIN) != 0,
          .writable = (events & EPOLLOUT) != 0,
          .hung_up = (events & (EPOLLHUP | EPOLLERR)) != 0};
}

// Async-signal-safe. Keeps errno for the code that a signal handler may have interrupted.
void signal_eventfd(int fd) {
  const int saved_errno = errno;
  const std::uint64_t one = 1;
  // Fails only with EAGAIN, at a counter that is about to overflow: then it is readable already.
  [[maybe_unused]] const ssize_t written = ::write(fd, &one, sizeof(one));
  errno = saved_errno;
}

void drain_counter(int fd) {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(fd, &count, sizeof(count));
}

}  // namespace

struct EventLoop::State {
  // A watched descriptor. Shared by the table and by a dispatch under way, so that a callback outlives its
  // own removal.
  struct Entry {
    int fd = -1;
    bool armed = false;      // known to epoll
    std::uint32_t bits = 0;  // what is waited for, while armed
    std::function<void(Readiness)> callback;
  };

  UniqueFd epoll;
  UniqueFd wake;
  std::atomic<bool> stopping{false};
  bool closed = false;  // the loop is gone; loop's thread only
  // The numbers are never used twice: a number that epoll reported for a watch destroyed meanwhile, by an
  // earlier callback of the same batch, is found to be gone even where its descriptor's number is in use
  // again.
  std::unordered_map<std::uint64_t, std::shared_ptr<Entry>> entries;
  std::uint64_t next_token = kWakeToken + 1;

  Mutex mutex;  // a leaf: no other lock is taken under it
  std::deque<std::function<void()>> tasks MAYFLY_GUARDED_BY(mutex);

  Result<void> control(int operation, int fd, std::uint64_t token, std::uint32_t bits) const {
    epoll_event event{};
    event.events = bits;
    event.data.u64 = token;
    if (::epoll_ctl(epoll.get(), operation, fd, &event) != 0) {
      return fail_errno(errno, "watch descriptor " + std::to_string(fd));
    }
    return {};
  }

  // Runs at most kTasksPerRound tasks; whether more are waiting is left to the eventfd, which stays readable.
  void run_tasks() {
    drain_counter(wake.get());
    for (int count = 0; count < kTasksPerRound && !stopping.load(std::memory_order_relaxed); ++count) {
      std::function<void()> task;
      {
        const MutexLock lock(mutex);
        if (tasks.empty()) {
          return;
        }
        task = std::move(tasks.front());
        tasks.pop_front();
      }
      task();
    }
    const MutexLock lock(mutex);
    if (!tasks.empty()) {
      signal_eventfd(wake.get());
    }
  }

  void dispatch(std::uint64_t token, std::uint32_t events) {
    const auto found = entries.find(token);
    if (found == entries.end()) {
      return;
    }
    const std::shared_ptr<Entry> entry = found->second;
    // What an earlier callback of the batch disabled or no longer waits for is not reported.
    const std::uint32_t wanted = events & (entry->bits | EPOLLHUP | EPOLLERR);
    if (entry->armed && wanted != 0) {
      entry->callback(readiness_of(wanted));
    }
  }
};

class EventLoop::LoopWatch final : public Watch {
 public:
  LoopWatch(std::shared_ptr<State> state, std::uint64_t token) : state_(std::move(state)), token_(token) {}
  LoopWatch(const LoopWatch&) = delete;
  LoopWatch& operator=(const LoopWatch&) = delete;

  ~LoopWatch() override {
    const auto found = state_->entries.find(token_);
    if (found == state_->entries.end()) {
      return;
    }
    // Its callback may own other watches: it is destroyed last, with the table in order.
    const std::shared_ptr<State::Entry> entry = std::move(found->second);
    state_->entries.erase(found);
    if (std::exchange(entry->armed, false)) {
      // Cannot fail while the descriptor is open, which is the owner's duty; if it was closed, epoll has
      // forgotten it already.
      [[maybe_unused]] const auto removed = state_->control(EPOLL_CTL_DEL, entry->fd, token_, 0);
    }
  }

  Result<void> update(Interest interest, bool enabled) override {
    if (state_->closed) {
      return fail(ErrorCode::kBusy, "change a watch: the event loop is gone");
    }
    State::Entry& entry = *state_->entries.at(token_);
    if (enabled) {
      const int operation = entry.armed ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
      MAYFLY_TRY(state_->control(operation, entry.fd, token_, epoll_bits(interest)));
      entry.bits = epoll_bits(interest);
    } else if (entry.armed) {
      // An event mask of nothing would still report hang-ups: it is taken out instead.
      MAYFLY_TRY(state_->control(EPOLL_CTL_DEL, entry.fd, token_, 0));
    }
    entry.armed = enabled;
    return {};
  }

 private:
  std::shared_ptr<State> state_;
  std::uint64_t token_;
};

// One timerfd a timer: a monitor has a handful (one a rate limiter), and each costs nothing while it waits.
class EventLoop::LoopTimer final : public EventRegistrar::Timer {
 public:
  explicit LoopTimer(UniqueFd fd) : fd_(std::move(fd)) {}

  void attach(std::unique_ptr<Watch> watch) { watch_ = std::move(watch); }

  Result<void> start(std::chrono::nanoseconds delay) override {
    // A value of zero would disarm it.
    const std::int64_t count = delay.count() > 0 ? delay.count() : 1;
    constexpr std::int64_t kPerSecond = 1'000'000'000;
    itimerspec spec{};
    spec.it_value.tv_sec = count / kPerSecond;
    spec.it_value.tv_nsec = count % kPerSecond;
    if (::timerfd_settime(fd_.get(), 0, &spec, nullptr) != 0) {
      return fail_errno(errno, "start a timer");
    }
    return {};
  }

  void cancel() override {
    // Setting it also clears an expiry that was not read yet. Cannot fail with these arguments.
    const itimerspec off{};
    ::timerfd_settime(fd_.get(), 0, &off, nullptr);
  }

  // Whether it has expired and was neither cancelled nor started again since epoll reported it.
  static bool take_expiry(int fd) {
    std::uint64_t count = 0;
    return ::read(fd, &count, sizeof(count)) == sizeof(count);
  }

 private:
  UniqueFd fd_;
  std::unique_ptr<Watch> watch_;  // after fd_: goes first
};

EventLoop::EventLoop(std::shared_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
  auto state = std::make_shared<State>();
  state->epoll = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!state->epoll) {
    return fail_errno(errno, "create an epoll instance");
  }
  MAYFLY_TRY_ASSIGN(state->wake, make_eventfd());
  MAYFLY_TRY(state->control(EPOLL_CTL_ADD, state->wake.get(), kWakeToken, EPOLLIN));
  return std::unique_ptr<EventLoop>(new EventLoop(std::move(state)));
}

EventLoop::~EventLoop() {
  state_->closed = true;
  // Watches that live on find nothing. The callbacks are destroyed with the table emptied before, as they may
  // own watches themselves.
  auto entries = std::exchange(state_->entries, {});
  std::deque<std::function<void()>> tasks;
  {
    const MutexLock lock(state_->mutex);
    tasks.swap(state_->tasks);
  }
}

Result<std::unique_ptr<Watch>> EventLoop::watch(int fd, Interest interest,
                                                std::function<void(Readiness)> callback) {
  auto entry = std::make_shared<State::Entry>();
  entry->fd = fd;
  entry->armed = true;
  entry->bits = epoll_bits(interest);
  entry->callback = std::move(callback);
  const std::uint64_t token = state_->next_token++;
  MAYFLY_TRY(state_->control(EPOLL_CTL_ADD, fd, token, entry->bits));
  state_->entries.emplace(token, std::move(entry));
  return std::make_unique<LoopWatch>(state_, token);
}

Result<std::unique_ptr<EventRegistrar::Timer>> EventLoop::make_timer(std::function<void()> callback) {
  UniqueFd fd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!fd) {
    return fail_errno(errno, "create a timer");
  }
  const int raw = fd.get();
  auto timer = std::make_unique<LoopTimer>(std::move(fd));
  MAYFLY_TRY_ASSIGN(auto watched,
                    watch(raw, Interest::kReadable, [raw, callback = std::move(callback)](Readiness) {
                      if (LoopTimer::take_expiry(raw)) {
                        callback();
                      }
                    }));
  timer->attach(std::move(watched));
  return timer;
}

void EventLoop::post(std::function<void()> task) {
  {
    const MutexLock lock(state_->mutex);
    state_->tasks.push_back(std::move(task));
  }
  signal_eventfd(state_->wake.get());
}

Result<void> EventLoop::run() {
  const std::shared_ptr<State> state = state_;
  std::array<epoll_event, kEventsPerRound> events{};
  while (!state->stopping.load(std::memory_order_relaxed)) {
    const int count = ::epoll_wait(state->epoll.get(), events.data(), kEventsPerRound, -1);
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      return fail_errno(errno, "wait for events");
    }
    for (int i = 0; i < count && !state->stopping.load(std::memory_order_relaxed); ++i) {
      const epoll_event& event = events[static_cast<std::size_t>(i)];
      if (event.data.u64 == kWakeToken) {
        state->run_tasks();
      } else {
        state->dispatch(event.data.u64, event.events);
      }
    }
  }
  state->stopping.store(false, std::memory_order_relaxed);
  // What run_tasks() read off the eventfd for tasks that a stop left in the queue is put back for the next
  // run.
  signal_eventfd(state->wake.get());
  return {};
}

void EventLoop::stop() {
  state_->stopping.store(true, std::memory_order_relaxed);
  signal_eventfd(state_->wake.get());
}

}  // namespace mayfly
