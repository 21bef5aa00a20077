#include "devices/serial/console.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace mayfly {
namespace {

// A registrar that waits with poll(2), one round at a time. Like epoll it refuses what can always be read.
class PollRegistrar final : public EventRegistrar {
 public:
  Result<std::unique_ptr<Watch>> watch(int fd, Interest interest,
                                       std::function<void(Readiness)> callback) override {
    if (refused == interest) {
      return fail(ErrorCode::kExhausted, "watch one more descriptor");
    }
    struct stat status {};
    if (::fstat(fd, &status) != 0) {
      return fail_errno(errno, "watch");
    }
    if (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode) ||
        (S_ISCHR(status.st_mode) && ::isatty(fd) != 1)) {
      return fail_errno(EPERM, "watch");
    }
    auto entry = std::make_shared<Entry>(Entry{fd, interest, true, std::move(callback)});
    entries_.push_back(entry);
    return std::make_unique<PollWatch>(std::move(entry));
  }
  Result<std::unique_ptr<Timer>> make_timer(std::function<void()> /*callback*/) override {
    return fail(ErrorCode::kUnsupported, "no timers here");
  }

  // Waits for a first event, `patience` at most, and delivers what there is; how many callbacks that made.
  int round(std::chrono::milliseconds patience = std::chrono::milliseconds(0)) {
    std::erase_if(entries_, [](const std::weak_ptr<Entry>& weak) { return weak.expired(); });
    std::vector<std::shared_ptr<Entry>> live;
    std::vector<struct pollfd> descriptors;
    for (const auto& weak : entries_) {
      if (auto entry = weak.lock(); entry && entry->enabled) {
        const short events = entry->interest == Interest::kReadable ? POLLIN : POLLOUT;
        descriptors.push_back({entry->fd, events, 0});
        live.push_back(std::move(entry));
      }
    }
    int calls = 0;
    if (::poll(descriptors.data(), descriptors.size(), static_cast<int>(patience.count())) <= 0) {
      return 0;
    }
    for (std::size_t i = 0; i < live.size(); ++i) {
      const int got = descriptors[i].revents;
      if (got != 0 && live[i]->enabled) {
        ++calls;
        live[i]->callback({(got & POLLIN) != 0, (got & POLLOUT) != 0, (got & (POLLHUP | POLLERR)) != 0});
      }
    }
    return calls;
  }

  // Rounds until `done`, or far longer than it can take.
  bool run_until(const std::function<bool()>& done) {
    for (int i = 0; i < 2000 && !done(); ++i) {
      round(std::chrono::milliseconds(5));
    }
    return done();
  }

  // Watches for this fail.
  std::optional<Interest> refused;

  std::size_t enabled_watches() const {
    return static_cast<std::size_t>(std::count_if(entries_.begin(), entries_.end(), [](const auto& weak) {
      const auto entry = weak.lock();
      return entry && entry->enabled;
    }));
  }

 private:
  struct Entry {
    int fd;
    Interest interest;
    bool enabled;
    std::function<void(Readiness)> callback;
  };
  class PollWatch final : public Watch {
   public:
    explicit PollWatch(std::shared_ptr<Entry> entry) : entry_(std::move(entry)) {}
    ~PollWatch() override { entry_->enabled = false; }
    PollWatch(const PollWatch&) = delete;
    PollWatch& operator=(const PollWatch&) = delete;
    Result<void> update(Interest interest, bool enabled) override {
      entry_->interest = interest;
      entry_->enabled = enabled;
      return {};
    }

   private:
    std::shared_ptr<Entry> entry_;
  };
  std::vector<std::weak_ptr<Entry>> entries_;
};

struct Pair {
  UniqueFd reader;
  UniqueFd writer;
};

Pair make_pipe() {
  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Pair make_sockets() {
  std::array<int, 2> ends{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// `reader` is the master, `writer` the slave, which does not translate line ends.
Pair make_terminal() {
  int master = -1;
  int slave = -1;
  termios modes{};
  ::cfmakeraw(&modes);
  modes.c_cc[VMIN] = 1;
  EXPECT_EQ(::openpty(&master, &slave, nullptr, &modes, nullptr), 0);
  return {UniqueFd(master), UniqueFd(slave)};
}

UniqueFd make_file() {
  std::string path = ::testing::TempDir() + "serial_console_XXXXXX";
  UniqueFd fd(::mkostemp(path.data(), O_CLOEXEC));
  EXPECT_TRUE(fd.valid());
  ::unlink(path.c_str());
  return fd;
}

std::string contents(const UniqueFd& file) {
  std::string text(1U << 20U, '\0');
  const ssize_t got = ::pread(file.get(), text.data(), text.size(), 0);
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  return text;
}

// What can be read from `fd` now.
std::string available(const UniqueFd& fd) {
  std::string text;
  std::array<char, 4096> chunk{};
  for (;;) {
    struct pollfd descriptor {
      fd.get(), POLLIN, 0
    };
    if (::poll(&descriptor, 1, 0) <= 0 || (descriptor.revents & POLLIN) == 0) {
      return text;
    }
    const ssize_t got = ::read(fd.get(), chunk.data(), chunk.size());
    if (got <= 0) {
      return text;
    }
    text.append(chunk.data(), static_cast<std::size_t>(got));
  }
}

void put(const UniqueFd& fd, std::string_view text) {
  ASSERT_EQ(::write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

// How much of `text` went into `fd`, which need not have room for any of it.
std::size_t put_some(const UniqueFd& fd, std::string_view text) {
  const int flags = ::fcntl(fd.get(), F_GETFL);
  ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK);
  const ssize_t taken = ::write(fd.get(), text.data(), text.size());
  ::fcntl(fd.get(), F_SETFL, flags);
  return taken > 0 ? static_cast<std::size_t>(taken) : 0;
}

bool is_nonblocking(const UniqueFd& fd) {
  return (::fcntl(fd.get(), F_GETFL) & O_NONBLOCK) != 0;
}

class NoLine final : public InterruptLine {
 public:
  void trigger() override {}
};

class ConsoleTest : public ::testing::Test {
 public:
  void start(ConsoleConfig config) {
    auto created = Console::create(registrar, std::move(config), metrics);
    ASSERT_TRUE(created.has_value()) << created.error().message();
    console = std::move(*created);
    uart = std::make_unique<Serial16550>(line, *console, metrics);
  }
  void start_output(const UniqueFd& fd, std::size_t buffer_size = 64U << 10U) {
    ConsoleConfig config;
    config.output = fd.get();
    config.buffer_size = buffer_size;
    start(std::move(config));
  }
  void start_input(const UniqueFd& fd, std::function<void()> on_quit = {}) {
    ConsoleConfig config;
    config.input = fd.get();
    config.on_quit = std::move(on_quit);
    start(std::move(config));
    guest_listens();
    ASSERT_TRUE(console->start_input(*uart).has_value());
  }
  void start_terminal(const UniqueFd& fd, std::chrono::nanoseconds drop_pace, std::function<void()> on_quit) {
    ConsoleConfig config;
    config.input = fd.get();
    config.on_quit = std::move(on_quit);
    config.drop_pace = drop_pace;
    start(std::move(config));
    guest_listens();
    ASSERT_TRUE(console->start_input(*uart).has_value());
  }
  void send(std::string_view text) {
    for (const char c : text) {
      console->transmit(static_cast<std::uint8_t>(c));
    }
  }
  void out(std::uint64_t offset, std::uint8_t value) { uart->bus_write(offset, {&value, 1}); }
  std::uint8_t in(std::uint64_t offset) {
    std::uint8_t value = 0;
    uart->bus_read(offset, {&value, 1});
    return value;
  }
  void guest_listens() {
    out(2, 0x01);
    out(1, 0x01);
  }
  // What the guest gets until `size` bytes are there.
  std::string guest_reads(std::size_t size) {
    std::string got;
    registrar.run_until([&] {
      while ((in(5) & 1) != 0) {
        got.push_back(static_cast<char>(in(0)));
      }
      return got.size() >= size;
    });
    return got;
  }

  PollRegistrar registrar;
  SerialMetrics metrics;
  NoLine line;
  std::unique_ptr<Console> console;
  std::unique_ptr<Serial16550> uart;
};

std::string pattern(std::size_t size) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) {
    text[i] = static_cast<char>('!' + (i * 31 + i / 89) % 90);
  }
  return text;
}

// --- Output

TEST_F(ConsoleTest, the_first_byte_is_written_before_the_loop_runs) {
  const Pair pipe = make_pipe();
  start_output(pipe.writer);
  send("L");
  EXPECT_EQ(available(pipe.reader), "L");
}

TEST_F(ConsoleTest, bytes_that_follow_are_gathered_until_the_line_ends) {
  const Pair pipe = make_pipe();
  start_output(pipe.writer);
  send("Linux");
  EXPECT_EQ(available(pipe.reader), "L");
  send(" version\n");
  EXPECT_EQ(available(pipe.reader), "inux version\n");
  EXPECT_EQ(metrics.flush_count, 2U);
}

TEST_F(ConsoleTest, a_line_that_does_not_end_is_written_when_the_window_closes) {
  const Pair pipe = make_pipe();
  start_output(pipe.writer);
  send("login: ");
  std::string got;
  EXPECT_TRUE(registrar.run_until([&] { return (got += available(pipe.reader)) == "login: "; }));
  // After the pause the next byte is a first one again.
  registrar.round(std::chrono::milliseconds(5));
  send("r");
  EXPECT_EQ(available(pipe.reader), "r");
}

TEST_F(ConsoleTest, a_long_line_is_written_in_batches) {
  const Pair pipe = make_pipe();
  start_output(pipe.writer);
  const std::string text = pattern(1 + Console::kBatchSize);
  send(text);
  EXPECT_EQ(available(pipe.reader), text);
}

TEST_F(ConsoleTest, nothing_is_left_to_do_after_everything_is_written) {
  const Pair pipe = make_pipe();
  start_output(pipe.writer);
  send("hello\n");
  registrar.run_until([&] { return registrar.round(std::chrono::milliseconds(5)) == 0; });
  EXPECT_EQ(registrar.enabled_watches(), 1U);  // the timer, which does not run
}

// Fills whatever is behind `writer`, reads it all in the end, and accounts for each byte.
void expect_exact_but_for_the_mark(const std::string& sent, const std::string& got, std::uint64_t lost) {
  const std::string mark = "\r\n[mayfly: " + std::to_string(lost) + " bytes of serial output lost]\r\n";
  const std::size_t at = got.find(mark);
  ASSERT_NE(at, std::string::npos) << got.substr(got.size() - std::min<std::size_t>(got.size(), 200));
  EXPECT_EQ(got.substr(0, at), sent.substr(0, at));
  EXPECT_EQ(got.substr(at + mark.size()), sent.substr(at + lost));
}

TEST_F(ConsoleTest, a_pipe_that_nobody_reads_does_not_stop_the_guest) {
  const Pair pipe = make_pipe();
  start_output(pipe.writer);
  const std::string text = pattern(300000);
  send(text);
  EXPECT_FALSE(is_nonblocking(pipe.writer));
  EXPECT_GT(metrics.lost_bytes, 0U);
  registrar.round();  // the loop learns that it has to wait, and does not spin
  EXPECT_EQ(registrar.round(), 0);
  EXPECT_EQ(registrar.round(), 0);

  std::string got;
  EXPECT_TRUE(registrar.run_until([&] {
    got += available(pipe.reader);
    return got.find("lost]\r\n") != std::string::npos;
  }));
  send("after\n");
  EXPECT_TRUE(registrar.run_until([&] {
    got += available(pipe.reader);
    return got.ends_with("after\n");
  }));
  expect_exact_but_for_the_mark(text + "after\n", got, metrics.lost_bytes);
  EXPECT_EQ(metrics.error_count, 0U);
}

TEST_F(ConsoleTest, a_socket_that_nobody_reads_does_not_stop_the_guest) {
  const Pair sockets = make_sockets();
  start_output(sockets.writer);
  const std::string text = pattern(1000000);
  send(text);
  EXPECT_FALSE(is_nonblocking(sockets.writer));
  std::string got;
  EXPECT_TRUE(registrar.run_until([&] {
    got += available(sockets.reader);
    return got.ends_with("lost]\r\n");
  }));
  expect_exact_but_for_the_mark(text, got, metrics.lost_bytes);
}

TEST_F(ConsoleTest, a_terminal_that_nobody_reads_does_not_stop_the_guest) {
  const Pair terminal = make_terminal();
  start_output(terminal.writer);
  const std::string text = pattern(200000);
  send(text);
  EXPECT_FALSE(is_nonblocking(terminal.writer));
  std::string got;
  EXPECT_TRUE(registrar.run_until([&] {
    got += available(terminal.reader);
    return got.ends_with("lost]\r\n");
  }));
  expect_exact_but_for_the_mark(text, got, metrics.lost_bytes);
}

TEST_F(ConsoleTest, bytes_are_taken_again_only_once_half_of_the_buffer_is_free) {
  const Pair pipe = make_pipe();
  ASSERT_GT(::fcntl(pipe.writer.get(), F_SETPIPE_SZ, 4096), 0);
  start_output(pipe.writer, 16384);
  send(pattern(4096 + 16384 + 10));
  registrar.round();
  const std::uint64_t lost = metrics.lost_bytes;
  ASSERT_GE(lost, 10U);
  std::string got = available(pipe.reader);
  ASSERT_LE(got.size(), 4096U);
  ASSERT_EQ(registrar.round(), 1);
  send("x");  // at least 12 KiB are still there
  EXPECT_EQ(metrics.lost_bytes, lost + 1);
  EXPECT_TRUE(registrar.run_until([&] { return (got += available(pipe.reader)).ends_with("lost]\r\n"); }));
  send("y\n");
  EXPECT_TRUE(registrar.run_until([&] { return (got += available(pipe.reader)).ends_with("y\n"); }));
  EXPECT_EQ(metrics.lost_bytes, lost + 1);
  EXPECT_EQ(got.find("lost]"), got.rfind("lost]"));
}

TEST_F(ConsoleTest, a_reader_that_goes_away_ends_output_and_nothing_else) {
  Pair pipe = make_pipe();
  start_output(pipe.writer);
  send("a\n");
  pipe.reader.reset();
  send("bc\nd");
  EXPECT_EQ(metrics.error_count, 1U);
  EXPECT_EQ(metrics.lost_bytes, 4U);
  registrar.round(std::chrono::milliseconds(5));
  EXPECT_EQ(registrar.round(std::chrono::milliseconds(5)), 0);
}

TEST_F(ConsoleTest, a_reader_that_goes_away_while_output_waits_ends_it) {
  Pair pipe = make_pipe();
  start_output(pipe.writer);
  send(pattern(100000));
  registrar.round();
  pipe.reader.reset();
  EXPECT_TRUE(registrar.run_until([&] { return metrics.error_count == 1; }));
  EXPECT_EQ(registrar.round(), 0);
  EXPECT_EQ(console->flush(), 0U);
}

TEST_F(ConsoleTest, a_terminal_that_is_hung_up_ends_output) {
  Pair terminal = make_terminal();
  start_output(terminal.writer);
  terminal.reader.reset();
  send("a\nb");
  EXPECT_EQ(metrics.error_count, 1U);
  EXPECT_EQ(metrics.lost_bytes, 3U);
}

TEST_F(ConsoleTest, a_regular_file_gets_everything_where_its_writers_left_off) {
  const UniqueFd file = make_file();
  put(file, "before\n");
  start_output(file);
  const std::string text = pattern(200000);
  send(text);
  EXPECT_EQ(console->flush(), 0U);
  put(file, "after\n");
  EXPECT_EQ(contents(file), "before\n" + text + "after\n");
  EXPECT_EQ(metrics.lost_bytes, 0U);
}

TEST_F(ConsoleTest, a_full_disk_keeps_what_fits_and_is_tried_again) {
  const UniqueFd full = open_file("/dev/full", O_WRONLY, "full device").value();
  start_output(full, 1024);
  send(pattern(3000));
  EXPECT_EQ(metrics.error_count, 1U);
  EXPECT_EQ(metrics.lost_bytes, 3000U - 1024U);
  registrar.round();
  EXPECT_EQ(registrar.round(), 0);  // waits for its timer
  EXPECT_EQ(console->flush(), 1024U);
  EXPECT_EQ(metrics.error_count, 1U);
}

TEST_F(ConsoleTest, a_file_as_large_as_it_may_be_keeps_what_fits_and_is_tried_again) {
  const UniqueFd file = make_file();
  const std::string text = pattern(5000);
  // In a process of its own, as the limit is the whole process's. Its exit code says what went wrong.
  EXPECT_EXIT(
      {
        rlimit limit{};
        ::getrlimit(RLIMIT_FSIZE, &limit);
        rlimit small = limit;
        small.rlim_cur = 1000;
        ::signal(SIGXFSZ, SIG_IGN);
        ::setrlimit(RLIMIT_FSIZE, &small);
        start_output(file);
        send(text);
        const bool waits = console->flush() == 4000 && contents(file) == text.substr(0, 1000);
        ::setrlimit(RLIMIT_FSIZE, &limit);
        const bool goes_on = console->flush() == 0 && contents(file) == text;
        const bool counted = metrics.error_count == 1 && metrics.lost_bytes == 0;
        ::_exit((waits ? 0 : 1) + (goes_on ? 0 : 2) + (counted ? 0 : 4));
      },
      ::testing::ExitedWithCode(0), "");
}

// A time that tests set.
std::uint64_t now_ns = 0;
constexpr Clock kTestClock{.monotonic_ns = [] { return now_ns; }, .realtime_ns = [] { return now_ns; }};
constexpr std::uint64_t kMillisecond = 1'000'000;

TEST_F(ConsoleTest, what_a_rate_limiter_holds_back_is_dropped_and_counted) {
  now_ns = 5 * kMillisecond;
  const UniqueFd file = make_file();
  ConsoleConfig config;
  config.output = file.get();
  config.rate_limiter = {.size = 100, .refill_time_ms = 1000, .one_time_burst = 20};
  config.clock = &kTestClock;
  start(std::move(config));
  const std::string text = pattern(500);
  send(text);
  console->flush();
  EXPECT_EQ(contents(file), text.substr(0, 120));
  EXPECT_EQ(metrics.lost_bytes, 380U);
  EXPECT_EQ(metrics.error_count, 0U);

  now_ns += 70 * kMillisecond;  // seven bytes
  send(text);
  console->flush();
  EXPECT_EQ(contents(file), text.substr(0, 120) + text.substr(0, 7));
  EXPECT_EQ(metrics.lost_bytes, 380U + 493U);

  now_ns += 10'000 * kMillisecond;  // all of the bucket, and no burst again
  send(text);
  console->flush();
  EXPECT_EQ(contents(file), text.substr(0, 120) + text.substr(0, 7) + text.substr(0, 100));
}

TEST_F(ConsoleTest, a_rate_limiter_that_does_not_limit_is_none) {
  for (const TokenBucketConfig limiter : {TokenBucketConfig{.size = 0, .refill_time_ms = 5},
                                          TokenBucketConfig{.size = 5, .refill_time_ms = 0}}) {
    const UniqueFd file = make_file();
    ConsoleConfig config;
    config.output = file.get();
    config.rate_limiter = limiter;
    start(std::move(config));
    send(pattern(500));
    console->flush();
    EXPECT_EQ(contents(file), pattern(500));
  }
  EXPECT_EQ(metrics.lost_bytes, 0U);
}

TEST_F(ConsoleTest, a_rate_limiter_that_refills_too_slowly_is_refused) {
  ConsoleConfig config;
  config.rate_limiter = {.size = 1, .refill_time_ms = TokenBucket::kMaxRefillTimeMs + 1};
  EXPECT_FALSE(Console::create(registrar, std::move(config), metrics).has_value());
}

TEST_F(ConsoleTest, output_that_is_not_open_is_dropped) {
  for (const int fd : {-1, 1000000}) {
    ConsoleConfig config;
    config.output = fd;
    start(std::move(config));
    send("x\n");
    EXPECT_EQ(console->flush(), 0U);
  }
  EXPECT_EQ(metrics.lost_bytes, 4U);
}

TEST_F(ConsoleTest, a_descriptor_of_the_wrong_direction_counts_as_not_open) {
  const Pair pipe = make_pipe();
  ConsoleConfig config;
  config.output = pipe.reader.get();
  config.input = pipe.writer.get();
  start(std::move(config));
  send("x");
  EXPECT_EQ(metrics.lost_bytes, 1U);
  EXPECT_TRUE(console->start_input(*uart).has_value());
}

TEST_F(ConsoleTest, a_descriptor_that_only_names_a_file_counts_as_not_open) {
  const UniqueFd name = open_file("/", O_PATH, "name").value();
  start_input(name);
  EXPECT_EQ(metrics.error_count, 0U);
  for (const auto direction : {HostStream::Direction::kInput, HostStream::Direction::kOutput}) {
    const auto stream = HostStream::open(name.get(), direction);
    ASSERT_FALSE(stream.has_value());
    EXPECT_EQ(stream.error().os_errno(), EBADF);
  }
}

TEST_F(ConsoleTest, a_buffer_too_small_for_the_mark_is_refused) {
  ConsoleConfig config;
  config.buffer_size = Console::kSmallestBuffer - 1;
  const auto created = Console::create(registrar, std::move(config), metrics);
  ASSERT_FALSE(created.has_value());
  EXPECT_EQ(created.error().code(), ErrorCode::kInvalidArgument);
}

TEST_F(ConsoleTest, the_end_flushes_to_an_attentive_reader) {
  Pair pipe = make_pipe();
  start_output(pipe.writer);
  const std::string text = pattern(120000);  // more than the pipe holds
  send(text);
  EXPECT_EQ(metrics.lost_bytes, 0U);
  pipe.writer.reset();
  std::string got;
  std::thread reader([&] {
    std::array<char, 1000> chunk{};
    ssize_t size = 0;
    while ((size = ::read(pipe.reader.get(), chunk.data(), chunk.size())) > 0) {
      got.append(chunk.data(), static_cast<std::size_t>(size));
    }
  });
  uart.reset();
  console.reset();
  reader.join();
  EXPECT_EQ(got, text);
}

TEST_F(ConsoleTest, the_end_does_not_wait_for_a_reader_that_does_not_read) {
  const Pair pipe = make_pipe();
  start_output(pipe.writer);
  send(pattern(100000));
  const std::size_t left = console->flush();
  EXPECT_GT(left, 0U);
  EXPECT_EQ(available(pipe.reader).size(), 100000U - left);
}

TEST_F(ConsoleTest, vcpus_may_write_while_the_loop_does) {
  Pair pipe = make_pipe();
  start_output(pipe.writer, 4096);
  std::atomic<bool> done{false};
  std::thread vcpu([&] {
    for (int i = 0; i < 50000; ++i) {
      out(0, i % 50 == 49 ? '\n' : 'x');
    }
    done = true;
  });
  std::size_t got = 0;
  while (!done) {
    registrar.round(std::chrono::milliseconds(1));
    got += available(pipe.reader).size();
  }
  vcpu.join();
  registrar.run_until([&] {
    got += available(pipe.reader).size();
    return got >= 50000 - metrics.lost_bytes;
  });
  EXPECT_GE(got, 50000 - metrics.lost_bytes);
  EXPECT_EQ(metrics.write_count, 50000U);
}

TEST_F(ConsoleTest, bytes_after_a_loss_follow_the_mark_while_the_rest_still_waits) {
  const Pair pipe = make_pipe();
  ASSERT_GT(::fcntl(pipe.writer.get(), F_SETPIPE_SZ, 4096), 0);
  start_output(pipe.writer, 16384);
  send(pattern(30000));
  std::string got;
  for (std::uint64_t lost = 0; lost != metrics.lost_bytes;) {
    lost = metrics.lost_bytes;
    got += available(pipe.reader);
    registrar.round();
    send("z");
  }
  send("end\n");
  EXPECT_TRUE(registrar.run_until([&] { return (got += available(pipe.reader)).ends_with("]\r\nzend\n"); }));
  expect_exact_but_for_the_mark(
      pattern(30000) + std::string(metrics.lost_bytes - 30000 + got.find("\r\n["), 'z') + "zend\n", got,
      metrics.lost_bytes);
}

TEST_F(ConsoleTest, output_goes_on_where_its_descriptor_cannot_be_waited_for) {
  const Pair pipe = make_pipe();
  start_output(pipe.writer);
  registrar.refused = Interest::kWritable;
  const std::string text = pattern(100000);
  send(text);
  std::string got;
  EXPECT_TRUE(registrar.run_until([&] { return (got += available(pipe.reader)).size() == text.size(); }));
  EXPECT_EQ(got, text);
}

// --- Input

TEST_F(ConsoleTest, input_that_cannot_be_waited_for_is_an_error) {
  const Pair pipe = make_pipe();
  ConsoleConfig config;
  config.input = pipe.reader.get();
  start(std::move(config));
  registrar.refused = Interest::kReadable;
  const auto started = console->start_input(*uart);
  ASSERT_FALSE(started.has_value());
  EXPECT_EQ(started.error().code(), ErrorCode::kExhausted);
}

TEST_F(ConsoleTest, input_that_cannot_be_read_ends_with_an_error_counted) {
  const UniqueFd directory = open_file("/", O_RDONLY | O_DIRECTORY, "directory").value();
  start_input(directory);
  EXPECT_EQ(metrics.error_count, 1U);
  EXPECT_EQ(registrar.round(), 0);
}

TEST_F(ConsoleTest, a_vcpu_may_read_while_the_loop_fills_the_receiver) {
  const UniqueFd file = make_file();
  const std::string text = pattern(50000);
  put(file, text);
  ::lseek(file.get(), 0, SEEK_SET);
  start_input(file);
  std::string got;
  std::atomic<bool> done{false};
  std::thread vcpu([&] {
    for (int idle = 0; got.size() < text.size() && idle < 50000000; ++idle) {
      while ((in(5) & 1) != 0) {
        got.push_back(static_cast<char>(in(0)));
        idle = 0;
      }
    }
    done = true;
  });
  while (!done) {
    registrar.round(std::chrono::milliseconds(1));
  }
  vcpu.join();
  EXPECT_EQ(got, text);
}

TEST_F(ConsoleTest, input_is_read_only_as_far_as_the_guest_takes_it) {
  const Pair pipe = make_pipe();
  const std::string text = pattern(5000);
  put(pipe.writer, text);
  start_input(pipe.reader);
  for (int i = 0; i < 5; ++i) {
    registrar.round();
  }
  int waiting = 0;
  ASSERT_EQ(::ioctl(pipe.reader.get(), FIONREAD, &waiting), 0);
  EXPECT_EQ(waiting, 5000 - 16);
  EXPECT_EQ(registrar.round(), 0);
  EXPECT_EQ(guest_reads(5000), text);
  EXPECT_FALSE(is_nonblocking(pipe.reader));
}

TEST_F(ConsoleTest, input_waits_for_a_guest_that_starts_late_and_clears_its_fifos) {
  const Pair pipe = make_pipe();
  put(pipe.writer, "poweroff\n");
  ConsoleConfig config;
  config.input = pipe.reader.get();
  start(std::move(config));
  ASSERT_TRUE(console->start_input(*uart).has_value());
  registrar.round();
  EXPECT_EQ(registrar.round(), 0);
  out(1, 0x01);
  registrar.round(std::chrono::milliseconds(5));
  out(2, 0x07);
  EXPECT_EQ(guest_reads(9), "poweroff\n");
}

TEST_F(ConsoleTest, the_end_of_input_ends_nothing_but_input) {
  Pair pipe = make_pipe();
  start_input(pipe.reader);
  put(pipe.writer, "last");
  pipe.writer.reset();
  EXPECT_EQ(guest_reads(4), "last");
  registrar.run_until([&] { return registrar.enabled_watches() == 1; });
  EXPECT_EQ(registrar.enabled_watches(), 1U);
  EXPECT_EQ(registrar.round(), 0);
  EXPECT_EQ(metrics.error_count, 0U);
}

TEST_F(ConsoleTest, a_regular_file_is_read_to_its_end_and_from_where_it_stands) {
  const UniqueFd file = make_file();
  const std::string text = pattern(3000);
  put(file, "skip" + text);
  ::lseek(file.get(), 4, SEEK_SET);
  start_input(file);
  EXPECT_EQ(guest_reads(3000), text);
  EXPECT_EQ(::lseek(file.get(), 0, SEEK_CUR), 3004);
}

TEST_F(ConsoleTest, the_null_device_is_an_end_at_once) {
  const UniqueFd null = open_file("/dev/null", O_RDONLY, "null device").value();
  start_input(null);
  EXPECT_EQ(registrar.round(), 0);
  EXPECT_EQ(in(5), 0x60);
}

TEST_F(ConsoleTest, a_socket_gives_input_until_it_is_closed) {
  Pair sockets = make_sockets();
  start_input(sockets.reader);
  put(sockets.writer, "hello");
  EXPECT_EQ(guest_reads(5), "hello");
  sockets.writer.reset();
  EXPECT_TRUE(registrar.run_until([&] { return registrar.enabled_watches() == 1; }));
}

TEST_F(ConsoleTest, stopped_input_stays_with_its_sender) {
  const Pair pipe = make_pipe();
  start_input(pipe.reader);
  console->stop_input();
  put(pipe.writer, "later");
  EXPECT_EQ(registrar.round(), 0);
  ASSERT_TRUE(console->start_input(*uart).has_value());
  EXPECT_EQ(guest_reads(5), "later");
}

TEST_F(ConsoleTest, a_terminal_gives_input_and_its_escape_quits) {
  Pair terminal = make_terminal();
  int quits = 0;
  start_input(terminal.writer, [&] { ++quits; });
  put(terminal.reader,
      "ab\x01\x01"
      "c\x01"
      "d");
  EXPECT_EQ(guest_reads(6),
            "ab\x01"
            "c\x01"
            "d");
  EXPECT_EQ(quits, 0);
  put(terminal.reader, "\x01");
  registrar.round(std::chrono::milliseconds(5));
  put(terminal.reader, "x");
  EXPECT_TRUE(registrar.run_until([&] { return quits == 1; }));
  terminal.reader.reset();
  EXPECT_TRUE(registrar.run_until([&] { return registrar.enabled_watches() == 1; }));
  EXPECT_EQ(metrics.error_count, 0U);
}

TEST_F(ConsoleTest, the_escape_quits_though_the_guest_does_not_read) {
  for (const bool listens : {false, true}) {
    const Pair terminal = make_terminal();
    int quits = 0;
    ConsoleConfig config;
    config.input = terminal.writer.get();
    config.on_quit = [&] { ++quits; };
    start(std::move(config));
    if (listens) {
      guest_listens();
    }
    ASSERT_TRUE(console->start_input(*uart).has_value());
    const std::string text = pattern(100);
    put(terminal.reader, text);
    registrar.round(std::chrono::milliseconds(5));
    put(terminal.reader, "\x01x");
    EXPECT_TRUE(registrar.run_until([&] { return quits == 1; }));
    guest_listens();
    EXPECT_EQ(guest_reads(100), text);
    uart.reset();
    console.reset();
  }
  EXPECT_EQ(metrics.lost_input_bytes, 0U);
  EXPECT_EQ(metrics.error_count, 0U);
}

TEST_F(ConsoleTest, typing_ahead_is_bounded_and_the_escape_comes_after_any_of_it) {
  const Pair terminal = make_terminal();
  int quits = 0;
  start_terminal(terminal.writer, std::chrono::milliseconds(1), [&] { ++quits; });
  const std::string text = pattern(10240);
  const std::string typed = text + "\x01x";
  EXPECT_TRUE(registrar.run_until([&, left = std::string_view(typed)]() mutable {
    left.remove_prefix(put_some(terminal.reader, left));
    return left.empty();
  }));
  EXPECT_TRUE(registrar.run_until([&] { return quits == 1; }));
  const std::size_t kept = Console::kTypeAhead + SerialState::kFifoSize;
  EXPECT_EQ(metrics.lost_input_bytes, text.size() - kept);
  EXPECT_EQ(metrics.error_count, 1U);
  EXPECT_EQ(guest_reads(kept), text.substr(0, kept));
  put(terminal.reader, "next");
  EXPECT_EQ(guest_reads(4), "next");
  EXPECT_EQ(metrics.error_count, 1U);
}

TEST_F(ConsoleTest, a_paste_is_whole_where_the_guest_reads_it) {
  const Pair terminal = make_terminal();
  start_terminal(terminal.writer, std::chrono::milliseconds(900), [] {});
  const std::string text = pattern(20000);
  std::string got;
  std::size_t sent = 0;
  // More than is kept, before the guest reads any of it.
  for (int i = 0; i < 20; ++i) {
    sent += put_some(terminal.reader, std::string_view(text).substr(sent));
    registrar.round();
  }
  for (int i = 0; i < 20000 && got.size() < text.size(); ++i) {
    sent += put_some(terminal.reader, std::string_view(text).substr(sent));
    while ((in(5) & 1) != 0) {
      got.push_back(static_cast<char>(in(0)));
    }
    registrar.round(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(got, text);
  EXPECT_EQ(metrics.lost_input_bytes, 0U);
}

TEST_F(ConsoleTest, a_terminal_without_an_escape_is_read_only_as_far_as_the_guest_takes_it) {
  const Pair terminal = make_terminal();
  const std::string text = pattern(1000);
  start_input(terminal.writer);
  put(terminal.reader, text);
  for (int i = 0; i < 5; ++i) {
    registrar.round(std::chrono::milliseconds(5));
  }
  int waiting = 0;
  ASSERT_EQ(::ioctl(terminal.writer.get(), FIONREAD, &waiting), 0);
  EXPECT_EQ(waiting, 1000 - 16);
  EXPECT_EQ(guest_reads(1000), text);
}

TEST_F(ConsoleTest, a_pipe_has_no_escape) {
  const Pair pipe = make_pipe();
  int quits = 0;
  start_input(pipe.reader, [&] { ++quits; });
  put(pipe.writer, "\x01x");
  EXPECT_EQ(guest_reads(2), "\x01x");
  EXPECT_EQ(quits, 0);
}

TEST(EscapeFilter, the_prefix_may_be_cut_from_its_key) {
  EscapeFilter filter;
  std::vector<std::uint8_t> out;
  const std::array<std::uint8_t, 2> first{'a', 0x01};
  const std::array<std::uint8_t, 2> second{'X', 'b'};
  EXPECT_FALSE(filter.feed(first, out));
  EXPECT_TRUE(filter.feed(second, out));
  EXPECT_EQ(out, (std::vector<std::uint8_t>{'a'}));
}

TEST(EscapeFilter, a_doubled_prefix_is_one_and_does_not_begin_another) {
  EscapeFilter filter;
  std::vector<std::uint8_t> out;
  const std::array<std::uint8_t, 3> typed{0x01, 0x01, 'x'};
  EXPECT_FALSE(filter.feed(typed, out));
  EXPECT_EQ(out, (std::vector<std::uint8_t>{0x01, 'x'}));
}

// --- The host's descriptors

TEST(HostStream, each_kind_of_descriptor_gets_its_own_way_of_not_waiting) {
  using Direction = HostStream::Direction;
  using Access = HostStream::Access;
  const Pair pipe = make_pipe();
  const Pair sockets = make_sockets();
  const Pair terminal = make_terminal();
  const UniqueFd file = make_file();
  const UniqueFd null = open_file("/dev/null", O_RDWR, "null device").value();
  const UniqueFd event = make_eventfd().value();
  struct Case {
    int fd;
    Direction direction;
    Access access;
  };
  const std::vector<Case> cases{
      {pipe.reader.get(), Direction::kInput, Access::kOwnDescription},
      {pipe.writer.get(), Direction::kOutput, Access::kOwnDescription},
      {terminal.writer.get(), Direction::kInput, Access::kOwnDescription},
      {terminal.writer.get(), Direction::kOutput, Access::kOwnDescription},
      {terminal.reader.get(), Direction::kOutput,
       Access::kPolled},  // opening it again makes another terminal
      {null.get(), Direction::kOutput, Access::kOwnDescription},
      {sockets.writer.get(), Direction::kOutput, Access::kSocket},
      {file.get(), Direction::kOutput, Access::kFile},
      {file.get(), Direction::kInput, Access::kFile},
      {event.get(), Direction::kOutput, Access::kPolled},
  };
  for (const auto& one : cases) {
    const auto stream = HostStream::open(one.fd, one.direction);
    ASSERT_TRUE(stream.has_value()) << stream.error().message();
    EXPECT_EQ(stream->access(), one.access);
    EXPECT_NE(stream->fd(), one.fd);
    EXPECT_NE(::fcntl(stream->fd(), F_GETFD) & FD_CLOEXEC, 0);
  }
  EXPECT_FALSE(is_nonblocking(pipe.reader));
  EXPECT_FALSE(is_nonblocking(pipe.writer));
  EXPECT_FALSE(is_nonblocking(terminal.writer));
}

TEST(HostStream, a_pipe_that_cannot_be_opened_again_does_not_wait_either) {
  const Pair pipe = make_pipe();
  HostStream stream =
      HostStream::open(pipe.writer.get(), HostStream::Direction::kOutput, "/nonexistent").value();
  ASSERT_EQ(stream.access(), HostStream::Access::kPolled);
  const std::vector<std::uint8_t> data(10000, 'x');
  std::size_t total = 0;
  ssize_t taken = 0;
  while ((taken = stream.write(data)) > 0) {
    EXPECT_LE(taken, 4096);
    total += static_cast<std::size_t>(taken);
  }
  EXPECT_EQ(taken, -EAGAIN);
  EXPECT_EQ(total, 65536U);
}

TEST(HostStream, a_terminal_that_cannot_be_opened_again_does_not_wait_either) {
  const Pair terminal = make_terminal();
  HostStream stream = HostStream::open(terminal.reader.get(), HostStream::Direction::kOutput).value();
  ASSERT_EQ(stream.access(), HostStream::Access::kPolled);
  const std::vector<std::uint8_t> data(100, 'x');
  ssize_t taken = 0;
  int writes = 0;
  while ((taken = stream.write(data)) > 0 && writes < 1000000) {
    EXPECT_EQ(taken, 1);
    ++writes;
  }
  EXPECT_EQ(taken, -EAGAIN);
  HostStream input = HostStream::open(terminal.reader.get(), HostStream::Direction::kInput).value();
  std::array<std::uint8_t, 4> buffer{};
  EXPECT_EQ(input.read(buffer), -EAGAIN);
}

TEST(HostStream, a_descriptor_that_is_not_open_is_refused) {
  const auto stream = HostStream::open(-1, HostStream::Direction::kOutput);
  ASSERT_FALSE(stream.has_value());
  EXPECT_EQ(stream.error().os_errno(), EBADF);
}

}  // namespace
}  // namespace mayfly
