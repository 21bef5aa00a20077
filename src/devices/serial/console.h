// What the guest's serial port is wired to: descriptors of the host, mostly standard output and input.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/serial/host_stream.h"
#include "devices/serial/serial.h"
#include "event/event_loop.h"
#include "rate_limiter/token_bucket.h"

namespace mayfly {

// What a person types to leave a raw terminal: Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends one Ctrl-A.
// Ctrl-A before any other key is sent with it.
class EscapeFilter {
 public:
  // Appends to `out` what of `bytes` is the guest's. True where the escape was completed; what follows it is
  // dropped.
  bool feed(std::span<const std::uint8_t> bytes, std::vector<std::uint8_t>& out);

 private:
  bool prefix_seen_ = false;
};

struct ConsoleConfig {
  // Borrowed until create() returns; -1, or one that is not open: none.
  int input = -1;
  int output = -1;
  // Output kept for a reader that does not read; at least Console::kSmallestBuffer.
  std::size_t buffer_size = 64U << 10U;
  // Called on the loop's thread after Ctrl-A x, where the input is a terminal. May be empty: no escape then.
  std::function<void()> on_quit;
  // Called on the loop's thread when the process finds itself in its terminal's foreground after it was in
  // the background: a shell need not say so, for a job that runs already. May be empty.
  std::function<void()> on_foreground{};
  // See Console; less than a second.
  std::chrono::nanoseconds drop_pace = std::chrono::milliseconds(100);
  // Bytes of output; absent, or one that does not limit: no limit.
  std::optional<TokenBucketConfig> rate_limiter{};
  // Of the rate limiter; borrowed.
  const Clock* clock = &kSystemClock;
};

// Output never makes the guest wait. A byte that comes after a pause is written at once by the vCPU's thread;
// those of the kBatchWindow that it opens are gathered until a line ends, kBatchSize bytes wait or the window
// closes, because one write(2) for each byte of a verbose boot costs more than the exits that bring them.
// What the reader does not take stays in the buffer, and the loop's thread writes it when there is room.
// While the buffer is full the newest bytes are dropped, until half of it is free again or all is written; a
// line "[mayfly: N bytes of serial output lost]" stands in their place. So what is read is exact up to the
// mark, and exact after it. A full disk, or a file that has reached the size the process may write, counts as
// a reader that does not read, tried again every kRetryDelay.
// A reader that is gone (EPIPE, a terminal hung up) ends output: all further bytes are lost bytes.
// What a rate limiter does not let through is lost as well, without a mark, which would itself be output.
//
// Input is read only as far as the receiver has room, so that the rest stays with whoever sent it. Not so at
// a terminal that has an escape (on_quit): a guest that does not read must not keep the escape from being
// seen. There input is read whatever the room is, and kTypeAhead bytes of it are kept. While so many wait and
// the guest takes less than kDropStep bytes in a drop_pace, as many are read, searched for the escape and
// dropped (lost_input_bytes): so a guest that reads gets all of what is pasted, and the escape comes through
// at no less than that rate. The end of input (EOF, a hang-up) ends input and nothing else. A terminal is
// read only while the process is in its foreground.
//
// Threads: transmit() and input_room_available() from any vCPU thread under the UART's lock; all else,
// construction and destruction included, on the loop's thread. vCPU threads make the system calls write, send
// (sockets), poll (descriptors that could not be opened again) and timerfd_settime.
class Console final : public SerialBackend {
 public:
  static constexpr std::size_t kSmallestBuffer = 256;
  static constexpr std::size_t kBatchSize = 1024;
  static constexpr std::chrono::nanoseconds kBatchWindow = std::chrono::milliseconds(1);
  static constexpr std::chrono::nanoseconds kRetryDelay = std::chrono::milliseconds(250);
  static constexpr std::size_t kTypeAhead = 4096;
  static constexpr std::size_t kDropStep = 1024;
  static constexpr std::chrono::milliseconds kFlushPatience{100};
  static constexpr std::chrono::milliseconds kFlushLimit{1000};

  // Ignores SIGPIPE, SIGTTOU and SIGTTIN in the process where they have their default action: a reader that
  // goes, or a terminal that has another foreground, must neither kill nor stop the monitor. `registrar` and
  // `metrics` are borrowed and outlive the console. Errors: kInvalidArgument for a buffer that is too small,
  // or a rate limiter that refills too slowly; those of the descriptors and of the registrar.
  static Result<std::unique_ptr<Console>> create(EventRegistrar& registrar, ConsoleConfig config,
                                                 SerialMetrics& metrics);
  // Flushes.
  ~Console() override;
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // Wires the input to `uart` (borrowed, outlives the console unless stop_input() is called first). Errors:
  // those of the registrar.
  Result<void> start_input(Serial16550& uart);
  void stop_input();

  // Writes what is buffered; waits for a reader that goes on reading, each time kFlushPatience at most and
  // kFlushLimit in all. How many bytes were left, which stay buffered.
  std::size_t flush();

  void transmit(std::uint8_t byte) override;
  void input_room_available() override;

 private:
  enum class Output : std::uint8_t {
    kReady,    // the last write was taken
    kBlocked,  // the reader does not read: waiting for writability
    kFailing,  // the file system is full, or the file as large as it may be: waiting for a while
    kEnded,
  };

  Console(EventRegistrar& registrar, ConsoleConfig config, SerialMetrics& metrics);
  Result<void> set_up();
  void on_wake();
  void pump_output();
  void pump_input();
  void end_input();
  void watch_input(bool enabled);
  void watch_output(int output, bool enabled);
  // Whether input is read however little of it the guest takes.
  bool hears_escape() const { return input_.is_terminal() && config_.on_quit; }
  // The next bytes for the guest, `limit` at most, into pending_input_; false where there are none now.
  bool read_input(std::size_t limit);
  // While kTypeAhead bytes wait: whether it is time to drop what comes on top.
  bool may_drop();
  // Seeks the escape in `bytes`; what is the guest's goes into pending_input_ where there is room.
  void take_typed(std::span<const std::uint8_t> bytes);

  bool within_limit() MAYFLY_REQUIRES(lock_);
  void append(std::uint8_t byte) MAYFLY_REQUIRES(lock_);
  void append_loss_mark() MAYFLY_REQUIRES(lock_);
  void drain() MAYFLY_REQUIRES(lock_);
  void wake_in(std::chrono::nanoseconds delay) MAYFLY_REQUIRES(lock_);
  void lose(std::size_t count);
  void count_error();

  EventRegistrar& registrar_;
  ConsoleConfig config_;
  SerialMetrics& metrics_;
  const pid_t own_group_;

  // The loop's thread only.
  HostStream input_;
  UniqueFd wake_timer_;  // a timerfd, as vCPU threads start it
  Serial16550* uart_ = nullptr;
  EscapeFilter escape_;
  std::vector<std::uint8_t> pending_input_;  // kTypeAhead bytes at most, and a Ctrl-A held back
  bool losing_input_ = false;
  std::optional<std::chrono::steady_clock::time_point> pace_end_;  // while much is typed ahead
  std::size_t taken_in_pace_ = 0;                                  // by the guest
  bool in_background_ = false;

  Mutex lock_;  // a leaf: no other lock is taken under it
  HostStream output_ MAYFLY_GUARDED_BY(lock_);
  Output output_state_ MAYFLY_GUARDED_BY(lock_) = Output::kEnded;
  std::optional<TokenBucket> limiter_ MAYFLY_GUARDED_BY(lock_);
  // NOLINTNEXTLINE(modernize-avoid-c-arrays): a vector would zero the buffer and make its pages resident
  std::unique_ptr<std::uint8_t[]> ring_ MAYFLY_GUARDED_BY(lock_);
  std::size_t head_ MAYFLY_GUARDED_BY(lock_) = 0;  // the oldest byte
  std::size_t size_ MAYFLY_GUARDED_BY(lock_) = 0;
  std::uint64_t lost_in_a_row_ MAYFLY_GUARDED_BY(lock_) = 0;         // while it is not 0, bytes are dropped
  bool batch_open_ MAYFLY_GUARDED_BY(lock_) = false;                 // bytes may wait for the timer
  std::chrono::nanoseconds wake_delay_ MAYFLY_GUARDED_BY(lock_){0};  // of the running timer; 0: not running

  // Last, so that they go first: their descriptors are above.
  std::unique_ptr<Watch> wake_watch_;
  std::unique_ptr<Watch> input_watch_;  // null where the descriptor cannot be waited for, and needs not be
  std::unique_ptr<Watch> output_watch_;
};

}  // namespace mayfly
