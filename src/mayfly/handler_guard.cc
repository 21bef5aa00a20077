#include "mayfly/handler_guard.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <optional>
#include <string>
#include <utility>

#include "base/log.h"

namespace mayfly {
namespace {

using std::chrono::steady_clock;

// What an orderly end may take where pages come: above all, passt has 2 s to end.
constexpr std::chrono::seconds kPatience{5};
// How often, and how many times in a row, pages have to be missing until a handler that hung up is gone.
constexpr std::chrono::milliseconds kBetweenLooks{250};
constexpr int kLooks = 8;
// What a load may take, which touches a few pages for each queue.
constexpr std::chrono::seconds kLoadPatience{10};

// Added up in the eventfd.
constexpr std::uint64_t kEnd = 1;
constexpr std::uint64_t kStop = std::uint64_t{1} << 32;

bool is_ready(const UniqueFd& fd) {
  pollfd wanted{.fd = fd.get(), .events = POLLIN, .revents = 0};
  return ::poll(&wanted, 1, 0) == 1 && (wanted.revents & POLLIN) != 0;
}

// Of the process that listens at the other end; 0 where there is no knowing.
pid_t process_behind(const UniqueFd& connection) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  return ::getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.pid : 0;
}

Result<UniqueFd> watch_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGTERM);
  ::sigaddset(&set, SIGINT);
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) {
    return fail_errno(errno, "create a signalfd");
  }
  return fd;
}

}  // namespace

HandlerGuard::HandlerGuard(UniqueFd userfault, const GuestMemory& memory, UniqueFd connection, Calls calls)
    : userfault_(std::move(userfault)), connection_(std::move(connection)), calls_(std::move(calls)) {
  for (const MemoryRegion& region : memory.regions()) {
    // SAFETY: the number is for the kernel; nothing is accessed through it.
    memory_.push_back({reinterpret_cast<std::uintptr_t>(region.host), region.range.size()});
  }
}

Result<std::unique_ptr<HandlerGuard>> HandlerGuard::start(const UniqueFd& userfault,
                                                          const GuestMemory& memory, UniqueFd connection,
                                                          Calls calls) {
  MAYFLY_TRY_ASSIGN(UniqueFd own, duplicate(userfault, "a userfaultfd"));
  std::unique_ptr<HandlerGuard> guard(
      new HandlerGuard(std::move(own), memory, std::move(connection), std::move(calls)));
  guard->handler_id_ = process_behind(guard->connection_);
  if (guard->handler_id_ > 0) {
    guard->handler_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, guard->handler_id_, 0)));
  }
  MAYFLY_TRY_ASSIGN(guard->signals_, watch_signals());
  MAYFLY_TRY_ASSIGN(guard->wishes_, make_eventfd());
  MAYFLY_TRY(
      guard->thread_.start("mayfly_guard", guard->calls_.confine, [self = guard.get()] { self->main(); }));
  MAYFLY_TRY(guard->thread_.wait_confined());
  return guard;
}

HandlerGuard::~HandlerGuard() {
  // An eventfd takes it: two numbers, once each or so.
  static_cast<void>(::eventfd_write(wishes_.get(), kStop));
}

void HandlerGuard::expect_end() {
  static_cast<void>(::eventfd_write(wishes_.get(), kEnd));
}

Result<void> HandlerGuard::finish_load() {
  const MutexLock lock(mutex_);
  loading_ = false;
  if (!given_up_.empty()) {
    return fail(ErrorCode::kIo, given_up_);
  }
  return {};
}

bool HandlerGuard::is_loading() {
  const MutexLock lock(mutex_);
  return loading_;
}

// False where none is under way.
bool HandlerGuard::give_up_load(const std::string& why) {
  const MutexLock lock(mutex_);
  if (!loading_) {
    return false;
  }
  if (given_up_.empty()) {
    // With the lock held: memory is there until the load, which then waits for it, has ended.
    for (const Range& range : memory_) {
      uffdio_range all{.start = range.start, .len = range.size};
      if (::ioctl(userfault_.get(), UFFDIO_UNREGISTER, &all) != 0) {
        return false;  // who waits for a page is not woken
      }
    }
    given_up_ = handler_id_ > 0 ? "process " + std::to_string(handler_id_) + " " + why : "it " + why;
  }
  return true;
}

void HandlerGuard::main() noexcept {
  const auto load_by = steady_clock::now() + kLoadPatience;
  std::optional<steady_clock::time_point> end_by;
  int looks = 0;
  const auto end_with = [&](OutcomeKind kind, const char* why) {
    if (!end_by) {
      end_by = steady_clock::now() + kPatience;
      calls_.end_with({kind, why});
    }
  };
  for (;;) {
    std::array<pollfd, 3> wanted{{{.fd = wishes_.get(), .events = POLLIN, .revents = 0},
                                  {.fd = signals_.get(), .events = POLLIN, .revents = 0},
                                  {.fd = connection_.get(), .events = POLLIN, .revents = 0}}};
    const bool has_time = end_by || !connection_ || is_loading();
    ::poll(wanted.data(), wanted.size(), has_time ? static_cast<int>(kBetweenLooks.count()) : -1);
    eventfd_t wishes = 0;
    if (::read(wishes_.get(), &wishes, sizeof(wishes)) == sizeof(wishes)) {
      if (wishes >= kStop) {
        return;
      }
      end_by = end_by.value_or(steady_clock::now() + kPatience);
    }
    signalfd_siginfo info{};
    if (::read(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
      give_up_load("has not brought the pages for it yet, and the monitor is to end");
      end_with(OutcomeKind::kStopped, info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT");
    }
    if (connection_ && wanted[2].revents != 0 && handler_has_hung_up()) {
      connection_.reset();
      LOG_WARN("the page fault handler has closed its connection");
    }
    looks = !connection_ && handler_is_gone() ? looks + 1 : 0;
    if (looks > kLooks && !give_up_load("has ended, and guest memory is missing")) {
      end_with(OutcomeKind::kVcpuFailed, "the page fault handler has ended, and guest memory is missing");
    }
    if (is_loading() && steady_clock::now() >= load_by) {
      give_up_load("has not brought the pages for it in 10 s");
    }
    if (end_by && steady_clock::now() >= *end_by) {
      calls_.end_at_once();
    }
  }
}

// What a handler says is not for us.
bool HandlerGuard::handler_has_hung_up() {
  std::array<char, 4096> bytes;
  const ssize_t size = ::read(connection_.get(), bytes.data(), bytes.size());
  return size == 0 || (size < 0 && errno != EAGAIN && errno != EINTR);
}

bool HandlerGuard::handler_is_gone() const {
  if (handler_ && !is_ready(handler_)) {
    return false;
  }
  const bool unheard = is_ready(userfault_);
  if (!unheard) {
    // Who waits for a page of which the handler has read and then done nothing asks again: until the next
    // look, then, to be heard by whoever is there.
    for (const Range& range : memory_) {
      uffdio_range all{.start = range.start, .len = range.size};
      static_cast<void>(::ioctl(userfault_.get(), UFFDIO_WAKE, &all));
    }
  }
  return unheard;
}

}  // namespace mayfly
