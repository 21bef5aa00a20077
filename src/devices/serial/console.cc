#include "devices/serial/console.h"

#include <poll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>

#include "devices/serial/terminal_guard.h"

namespace mayfly {
namespace {

constexpr std::uint8_t kControlA = 0x01;
constexpr std::chrono::nanoseconds kAtOnce{1};
// Refills of the receiver in one go before the loop looks after others.
constexpr int kInputRounds = 16;

}  // namespace

bool EscapeFilter::feed(std::span<const std::uint8_t> bytes, std::vector<std::uint8_t>& out) {
  for (const std::uint8_t byte : bytes) {
    if (!std::exchange(prefix_seen_, false)) {
      if (byte == kControlA) {
        prefix_seen_ = true;
      } else {
        out.push_back(byte);
      }
      continue;
    }
    if (byte == 'x' || byte == 'X') {
      return true;
    }
    out.push_back(kControlA);
    if (byte != kControlA) {
      out.push_back(byte);
    }
  }
  return false;
}

Console::Console(EventRegistrar& registrar, ConsoleConfig config, SerialMetrics& metrics)
    : registrar_(registrar), config_(std::move(config)), metrics_(metrics), own_group_(::getpgrp()) {}

Result<std::unique_ptr<Console>> Console::create(EventRegistrar& registrar, ConsoleConfig config,
                                                 SerialMetrics& metrics) {
  if (config.buffer_size < kSmallestBuffer) {
    return fail(ErrorCode::kInvalidArgument, "serial console: the buffer holds less than 256 bytes");
  }
  std::unique_ptr<Console> console(new Console(registrar, std::move(config), metrics));
  MAYFLY_TRY(console->set_up());
  return console;
}

Result<void> Console::set_up() {
  for (const int signal : {SIGPIPE, SIGTTOU, SIGTTIN}) {
    ignore_signal_unless_handled(signal);
  }
  const MutexLock guard(lock_);
  if (config_.rate_limiter && config_.rate_limiter->limits()) {
    MAYFLY_TRY_ASSIGN(limiter_, TokenBucket::create(*config_.rate_limiter, config_.clock->monotonic_ns()));
  }
  for (const auto direction : {HostStream::Direction::kInput, HostStream::Direction::kOutput}) {
    const bool is_input = direction == HostStream::Direction::kInput;
    auto stream = HostStream::open(is_input ? config_.input : config_.output, direction);
    if (stream) {
      (is_input ? input_ : output_) = std::move(*stream);
    } else if (stream.error().os_errno() != EBADF) {
      return tl::make_unexpected(std::move(stream.error()));
    }
  }
  if (output_.valid()) {
    output_state_ = Output::kReady;
    // NOLINTNEXTLINE(modernize-avoid-c-arrays): not zeroed, so that pages never reached cost nothing
    ring_ = std::make_unique_for_overwrite<std::uint8_t[]>(config_.buffer_size);
  }
  wake_timer_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  if (!wake_timer_.valid()) {
    return fail_errno(errno, "make the serial console's timer");
  }
  MAYFLY_TRY_ASSIGN(wake_watch_, registrar_.watch(wake_timer_.get(), Interest::kReadable,
                                                  [this](Readiness) { on_wake(); }));
  return {};
}

Console::~Console() {
  flush();
}

Result<void> Console::start_input(Serial16550& uart) {
  uart_ = &uart;
  if (input_.valid() && input_watch_ == nullptr) {
    auto watch = registrar_.watch(input_.fd(), Interest::kReadable, [this](Readiness) { pump_input(); });
    if (watch) {
      input_watch_ = std::move(*watch);
    } else if (watch.error().os_errno() != EPERM) {
      // EPERM: a file that is always readable (epoll_ctl(2)); it is read whenever there is room.
      return tl::make_unexpected(std::move(watch.error()));
    }
  }
  pump_input();
  return {};
}

void Console::stop_input() {
  uart_ = nullptr;
  watch_input(false);
}

std::size_t Console::flush() {
  using SteadyClock = std::chrono::steady_clock;
  const auto end = SteadyClock::now() + kFlushLimit;
  for (;;) {
    struct pollfd descriptor {
      - 1, POLLOUT, 0
    };
    {
      const MutexLock guard(lock_);
      drain();
      if (output_state_ != Output::kBlocked) {
        return size_;
      }
      descriptor.fd = output_.fd();
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - SteadyClock::now());
    const int ready = left.count() > 0
                          ? ::poll(&descriptor, 1, static_cast<int>(std::min(left, kFlushPatience).count()))
                          : 0;
    if (ready == 0 || (ready < 0 && errno != EINTR)) {
      const MutexLock guard(lock_);
      return size_;
    }
  }
}

void Console::transmit(std::uint8_t byte) {
  const MutexLock guard(lock_);
  if (output_state_ == Output::kEnded || !within_limit()) {
    lose(1);
    return;
  }
  append(byte);
  if (output_state_ != Output::kReady) {
    return;
  }
  if (!batch_open_ || byte == '\n' || size_ >= kBatchSize) {
    drain();
  }
  if (output_state_ == Output::kBlocked || output_state_ == Output::kFailing) {
    wake_in(kAtOnce);
  } else if (!batch_open_) {
    batch_open_ = true;
    wake_in(kBatchWindow);
  }
}

void Console::input_room_available() {
  const MutexLock guard(lock_);
  wake_in(kAtOnce);
}

void Console::on_wake() {
  std::uint64_t expirations = 0;
  // Nothing to learn from it but that the timer is quiet again.
  [[maybe_unused]] const ssize_t size = ::read(wake_timer_.get(), &expirations, sizeof expirations);
  {
    const MutexLock guard(lock_);
    wake_delay_ = std::chrono::nanoseconds(0);
    batch_open_ = false;
  }
  pump_output();
  pump_input();
}

void Console::pump_output() {
  Output state = Output::kEnded;
  int output = -1;
  {
    const MutexLock guard(lock_);
    drain();
    state = output_state_;
    output = output_.fd();
    if (state == Output::kFailing) {
      wake_in(kRetryDelay);
    }
  }
  // While it is blocked only this thread changes the state, so that it still holds.
  if (state == Output::kEnded) {
    output_watch_.reset();
  } else {
    watch_output(output, state == Output::kBlocked);
  }
}

void Console::watch_output(int output, bool enabled) {
  bool watching = false;
  if (output_watch_ != nullptr) {
    watching = output_watch_->update(Interest::kWritable, enabled).has_value();
  } else if (enabled) {
    auto watch = registrar_.watch(output, Interest::kWritable, [this](Readiness) { pump_output(); });
    if (watch) {
      output_watch_ = std::move(*watch);
      watching = true;
    }
  }
  if (enabled && !watching) {
    const MutexLock guard(lock_);
    wake_in(kRetryDelay);
  }
}

void Console::watch_input(bool enabled) {
  if (input_watch_ != nullptr && !input_watch_->update(Interest::kReadable, enabled)) {
    count_error();
  }
}

void Console::end_input() {
  input_watch_.reset();
  input_ = HostStream();
}

void Console::pump_input() {
  if (uart_ == nullptr) {
    return;
  }
  for (int round = 0; round < kInputRounds; ++round) {
    const std::size_t taken = uart_->receive(pending_input_);
    pending_input_.erase(pending_input_.begin(), pending_input_.begin() + static_cast<std::ptrdiff_t>(taken));
    std::size_t limit = pending_input_.empty() ? uart_->input_room() : 0;
    taken_in_pace_ += taken;
    if (pending_input_.size() < kTypeAhead / 2) {
      pace_end_.reset();
    }
    if (hears_escape()) {
      if (pending_input_.size() < kTypeAhead) {
        limit = kTypeAhead - pending_input_.size();
      } else if (may_drop()) {
        limit = kDropStep;
      } else {
        watch_input(false);
        const MutexLock guard(lock_);
        wake_in(config_.drop_pace);
        return;
      }
    }
    if (limit == 0) {
      // The UART reports when there is room.
      watch_input(false);
      return;
    }
    if (!input_.valid() || !read_input(limit)) {
      return;
    }
  }
  const MutexLock guard(lock_);
  wake_in(kAtOnce);
}

bool Console::may_drop() {
  const auto now = std::chrono::steady_clock::now();
  const bool over = pace_end_ && now >= *pace_end_;
  const bool idle = taken_in_pace_ < kDropStep;
  if (!pace_end_ || over) {
    pace_end_ = now + config_.drop_pace;
    taken_in_pace_ = 0;
  }
  return over && idle;
}

bool Console::read_input(std::size_t limit) {
  if (input_.is_terminal()) {
    if (!in_foreground(input_.fd(), own_group_)) {
      in_background_ = true;
      watch_input(false);
      const MutexLock guard(lock_);
      wake_in(kRetryDelay);
      return false;
    }
    if (std::exchange(in_background_, false) && config_.on_foreground) {
      config_.on_foreground();
    }
  }
  std::array<std::uint8_t, kDropStep> buffer;
  const ssize_t got = input_.read(std::span(buffer).first(std::min(limit, buffer.size())));
  if (got == -EAGAIN) {
    if (input_watch_ != nullptr) {
      watch_input(true);
    } else {
      const MutexLock guard(lock_);
      wake_in(kRetryDelay);
    }
    return false;
  }
  if (got <= 0) {
    // A terminal that has been hung up reads as EIO.
    if (got < 0 && got != -EIO) {
      count_error();
    }
    end_input();
    return false;
  }
  const auto bytes = std::span(buffer).first(static_cast<std::size_t>(got));
  if (hears_escape()) {
    take_typed(bytes);
  } else {
    pending_input_.assign(bytes.begin(), bytes.end());
  }
  return true;
}

void Console::take_typed(std::span<const std::uint8_t> bytes) {
  const bool full = pending_input_.size() >= kTypeAhead;
  std::vector<std::uint8_t> dropped;
  const bool quit = escape_.feed(bytes, full ? dropped : pending_input_);
  metrics_.lost_input_bytes.fetch_add(dropped.size(), std::memory_order_relaxed);
  if (!std::exchange(losing_input_, full) && full) {
    count_error();
  }
  if (quit) {
    config_.on_quit();
  }
}

bool Console::within_limit() {
  return !limiter_ || limiter_->consume(1, config_.clock->monotonic_ns());
}

void Console::append(std::uint8_t byte) {
  const std::size_t capacity = config_.buffer_size;
  if (lost_in_a_row_ > 0 && size_ <= capacity / 2) {
    append_loss_mark();
  }
  if (lost_in_a_row_ > 0 || size_ == capacity) {
    ++lost_in_a_row_;
    lose(1);
    return;
  }
  ring_[(head_ + size_) % capacity] = byte;
  ++size_;
}

void Console::append_loss_mark() {
  std::array<char, 96> text;  // fits into half of the smallest buffer
  const int length =
      std::snprintf(text.data(), text.size(), "\r\n[mayfly: %llu bytes of serial output lost]\r\n",
                    static_cast<unsigned long long>(std::exchange(lost_in_a_row_, 0)));
  for (int i = 0; i < length; ++i) {
    append(static_cast<std::uint8_t>(text[static_cast<std::size_t>(i)]));
  }
}

void Console::drain() {
  if (output_state_ == Output::kEnded) {
    return;
  }
  while (size_ > 0 || lost_in_a_row_ > 0) {
    if (size_ == 0) {
      append_loss_mark();
    }
    const std::size_t run = std::min(size_, config_.buffer_size - head_);
    const ssize_t taken = output_.write({&ring_[head_], run});
    if (taken > 0) {
      head_ = (head_ + static_cast<std::size_t>(taken)) % config_.buffer_size;
      size_ -= static_cast<std::size_t>(taken);
      output_state_ = Output::kReady;
      metrics_.flush_count.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    if (taken == -EAGAIN) {
      output_state_ = Output::kBlocked;
      return;
    }
    if (output_state_ != Output::kFailing) {
      count_error();
    }
    if (taken == -ENOSPC || taken == -EDQUOT || taken == -EFBIG) {
      output_state_ = Output::kFailing;
      return;
    }
    output_state_ = Output::kEnded;
    lose(std::exchange(size_, 0));
    return;
  }
  output_state_ = Output::kReady;
}

void Console::wake_in(std::chrono::nanoseconds delay) {
  if (wake_delay_.count() != 0 && wake_delay_ <= delay) {
    return;
  }
  wake_delay_ = delay;
  struct itimerspec when {};
  when.it_value.tv_nsec = static_cast<long>(delay.count());  // all delays are below a second
  // Cannot fail: the descriptor is a timer and the time is in range.
  static_cast<void>(::timerfd_settime(wake_timer_.get(), 0, &when, nullptr));
}

void Console::lose(std::size_t count) {
  metrics_.lost_bytes.fetch_add(count, std::memory_order_relaxed);
}

void Console::count_error() {
  metrics_.error_count.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace mayfly
