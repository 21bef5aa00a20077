#include "base/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "base/line_sink.h"
#include "base/metrics.h"
#include "base/thread_name.h"
#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using testing::read_lines;
using testing::TempDir;

constexpr std::uint64_t kSecond = 1'000'000'000;

std::atomic<std::uint64_t> g_now{0};
constexpr Clock kTestClock{[]() -> std::uint64_t { return g_now.load(); },
                           []() -> std::uint64_t { return 1'709'251'199'000'000'001U; }};
const std::string kTime = "2024-02-29T23:59:59.000000001 ";

// The log is the process's own: every test starts from the same settings, with a file of its own.
class LogTest : public ::testing::Test {
 protected:
  LogTest() {
    set_log_clock(kTestClock);
    set_thread_name("tester");
    EXPECT_TRUE(set_log_instance_id("test-vm").has_value());
    EXPECT_TRUE(configure_log({.path = path(),
                               .level = LogLevel::kInfo,
                               .show_level = false,
                               .show_origin = false,
                               .module = ""})
                    .has_value());
  }
  ~LogTest() override {
    EXPECT_TRUE(
        configure_log({.path = "/dev/null", .level = {}, .show_level = {}, .show_origin = {}, .module = {}})
            .has_value());
    set_log_clock(kSystemClock);
  }

  static void configure(std::optional<LogLevel> level, std::optional<bool> show_level = {},
                        std::optional<bool> show_origin = {}, std::optional<std::string> module = {}) {
    EXPECT_TRUE(configure_log({.path = {},
                               .level = level,
                               .show_level = show_level,
                               .show_origin = show_origin,
                               .module = std::move(module)})
                    .has_value());
  }
  static Result<void> set_path(const std::string& path) {
    return configure_log({.path = path, .level = {}, .show_level = {}, .show_origin = {}, .module = {}});
  }
  std::string path() const { return dir_.file("log"); }
  std::vector<std::string> lines() const { return read_lines(path()); }

  TempDir dir_;
};

TEST_F(LogTest, a_line_has_the_time_the_instance_and_the_thread) {
  LOG_INFO("%d and %s", 7, "text");
  EXPECT_EQ(lines(), std::vector<std::string>{kTime + "[test-vm:tester] 7 and text"});
}

TEST_F(LogTest, level_and_origin_are_shown_on_demand) {
  configure({}, true, false);
  LOG_ERROR("a");
  configure({}, false, true);
  const int line = __LINE__ + 1;
  LOG_WARN("b");
  configure({}, true, true);
  LOG_INFO("c");
  EXPECT_EQ(lines(),
            (std::vector<std::string>{
                kTime + "[test-vm:tester:ERROR] a",
                kTime + "[test-vm:tester:base/log_test.cc:" + std::to_string(line) + "] b",
                kTime + "[test-vm:tester:INFO:base/log_test.cc:" + std::to_string(line + 2) + "] c"}));
}

TEST_F(LogTest, each_level_lets_what_is_as_severe_pass) {
  const std::array levels{LogLevel::kOff,  LogLevel::kError, LogLevel::kWarn,
                          LogLevel::kInfo, LogLevel::kDebug, LogLevel::kTrace};
  std::size_t expected = 0;
  for (std::size_t i = 0; i < levels.size(); ++i) {
    configure(levels[i]);
    LOG_ERROR("e");
    LOG_WARN("w");
    LOG_INFO("i");
    LOG_DEBUG("d");
    LOG_TRACE("t");
    expected += i;
    EXPECT_EQ(lines().size(), expected);
  }
}

TEST_F(LogTest, arguments_of_a_line_that_is_off_are_not_evaluated) {
  int evaluated = 0;
  LOG_DEBUG("%d", ++evaluated);
  EXPECT_EQ(evaluated, 0);
}

TEST_F(LogTest, logging_keeps_errno_even_when_the_line_is_lost) {
  ASSERT_TRUE(set_path("/dev/full").has_value());
  const std::uint64_t before = metrics().logger.missed_log_count.value();
  errno = EXDEV;
  LOG_INFO("x");
  LOG_WARN_LIMITED("x");
  EXPECT_EQ(errno, EXDEV);
  EXPECT_EQ(metrics().logger.missed_log_count.value() - before, 2U);
}

TEST_F(LogTest, the_module_filter_is_a_path_down_to_the_file) {
  for (const char* passing : {"base", "base/log_test", "base/log_test.cc", "base::log_test", ""}) {
    const std::size_t before = lines().size();
    configure({}, {}, {}, passing);
    LOG_INFO("x");
    LOG_INFO_LIMITED("x");
    EXPECT_EQ(lines().size(), before + 2) << passing;
  }
  for (const char* other : {"bas", "base/log", "base/", "devices/serial", "base/log_test.cc/x"}) {
    const std::size_t before = lines().size();
    configure({}, {}, {}, other);
    LOG_INFO("x");
    LOG_INFO_LIMITED("x");
    EXPECT_EQ(lines().size(), before) << other;
  }
  EXPECT_FALSE(configure_log({.path = {},
                              .level = {},
                              .show_level = {},
                              .show_origin = {},
                              .module = std::string(kMaxModule + 1, 'm')})
                   .has_value());
}

TEST_F(LogTest, strings_from_elsewhere_can_neither_forge_a_line_nor_reach_the_terminal) {
  LOG_INFO("name \"%s\"", "x\n2024-02-29T23:59:59.000000001 [test-vm:tester] forged\x1b[31m\r");
  set_thread_name("a\nb");
  LOG_INFO("y");
  EXPECT_EQ(lines(), (std::vector<std::string>{
                         kTime + "[test-vm:tester] name \"x\\n2024-02-29T23:59:59.000000001 [test-vm:tester] "
                                 "forged\\x1b[31m\\r\"",
                         kTime + "[test-vm:a\\nb] y"}));
}

TEST_F(LogTest, a_long_message_is_cut_and_says_so) {
  LOG_INFO("%s", std::string(10'000, 'a').c_str());
  LOG_INFO("%s", std::string(10'000, '\x01').c_str());
  LOG_INFO("%s", std::string(1'000, '\n').c_str());
  const auto written = lines();
  ASSERT_EQ(written.size(), 3U);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_LT(written[i].size(), kAtomicLine);
    EXPECT_TRUE(written[i].ends_with("..."));
  }
  EXPECT_EQ(written[1].size(), kAtomicLine - 1);
  EXPECT_TRUE(written[2].ends_with("\\n"));
}

TEST_F(LogTest, a_place_with_a_limit_is_silent_after_ten_lines_and_tells_how_many_it_left_out) {
  const std::uint64_t before = metrics().logger.rate_limited_log_count.value();
  const auto hit = [] { LOG_WARN_LIMITED("hit"); };
  const auto other = [] { LOG_WARN_LIMITED("other"); };
  g_now = 3;  // also shortly after the host's start
  for (int i = 0; i < 17; ++i) {
    hit();
  }
  EXPECT_EQ(lines().size(), 10U);
  EXPECT_EQ(metrics().logger.rate_limited_log_count.value() - before, 7U);
  other();
  EXPECT_EQ(lines().size(), 11U);
  g_now = 3 + 5 * kSecond - 1;
  hit();
  EXPECT_EQ(lines().size(), 11U);
  g_now = 3 + 5 * kSecond;
  hit();
  hit();
  const auto written = lines();
  ASSERT_EQ(written.size(), 14U);
  EXPECT_TRUE(written[11].ends_with("] 8 lines suppressed"));
  EXPECT_TRUE(written[12].ends_with("] hit"));
  EXPECT_TRUE(written[13].ends_with("] hit"));
}

TEST_F(LogTest, what_the_level_leaves_out_does_not_use_up_a_limit) {
  g_now = 100 * kSecond;
  const auto hit = [] { LOG_DEBUG_LIMITED("hit"); };
  for (int i = 0; i < 20; ++i) {
    hit();
  }
  configure(LogLevel::kDebug);
  hit();
  EXPECT_EQ(lines().size(), 1U);
}

TEST_F(LogTest, settings_that_are_absent_stay_and_a_new_file_takes_over) {
  configure(LogLevel::kDebug, true);
  ASSERT_TRUE(set_path(dir_.file("second")).has_value());
  LOG_DEBUG("x");
  EXPECT_TRUE(lines().empty());
  EXPECT_EQ(read_lines(dir_.file("second")), std::vector<std::string>{kTime + "[test-vm:tester:DEBUG] x"});
  ASSERT_TRUE(set_path(path()).has_value());
  LOG_DEBUG("y");
  EXPECT_EQ(lines().size(), 1U);
}

TEST_F(LogTest, a_configuration_that_fails_changes_nothing) {
  EXPECT_EQ(configure_log({.path = dir_.file("no/where"),
                           .level = LogLevel::kOff,
                           .show_level = true,
                           .show_origin = true,
                           .module = "none"})
                .error()
                .code(),
            ErrorCode::kNotFound);
  LOG_INFO("x");
  EXPECT_EQ(lines(), std::vector<std::string>{kTime + "[test-vm:tester] x"});
}

TEST_F(LogTest, an_instance_id_is_checked) {
  for (const char* bad : {"", "a b", "a\n", "a:b"}) {
    EXPECT_EQ(set_log_instance_id(bad).error().code(), ErrorCode::kInvalidArgument);
  }
  const std::string longest(64, 'i');
  ASSERT_TRUE(set_log_instance_id(longest).has_value());
  LOG_INFO("x");
  ASSERT_TRUE(set_log_instance_id("short").has_value());
  LOG_INFO("x");
  EXPECT_EQ(lines(),
            (std::vector<std::string>{kTime + "[" + longest + ":tester] x", kTime + "[short:tester] x"}));
}

TEST_F(LogTest, a_fifo_without_a_reader_drops_and_counts_lines_and_never_blocks) {
  const std::string fifo = dir_.fifo("fifo");
  ASSERT_TRUE(set_path(fifo).has_value());
  const std::uint64_t before = metrics().logger.missed_log_count.value();
  std::size_t written = 0;
  while (metrics().logger.missed_log_count.value() == before) {
    LOG_INFO("line %zu", written++);
    ASSERT_LT(written, 100'000U);
  }
  --written;
  EXPECT_GT(written, 100U);
  // A reader that comes late finds whole lines; one that goes does no harm.
  std::string text;
  {
    const UniqueFd reader = open_file(fifo, O_RDONLY | O_NONBLOCK, "fifo").value();
    std::array<char, 65536> chunk{};
    for (ssize_t got = 0; (got = ::read(reader.get(), chunk.data(), chunk.size())) > 0;) {
      text.append(chunk.data(), static_cast<std::size_t>(got));
    }
  }
  EXPECT_EQ(static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')), written);
  EXPECT_TRUE(text.ends_with("line " + std::to_string(written - 1) + "\n"));
  LOG_INFO("again");
  EXPECT_EQ(metrics().logger.missed_log_count.value(), before + 1);
}

TEST_F(LogTest, lines_of_many_threads_are_whole_also_while_the_file_is_replaced) {
  constexpr int kThreads = 4;
  constexpr int kLines = 200;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([i] {
      set_thread_name("worker " + std::to_string(i));
      for (int line = 0; line < kLines; ++line) {
        LOG_INFO("%s", std::string(100, static_cast<char>('a' + i)).c_str());
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(set_path(i % 2 == 0 ? dir_.file("second") : path()).has_value());
    configure({}, i % 2 == 0, {}, i % 3 == 0 ? "base" : "");
  }
  for (auto& thread : threads) {
    thread.join();
  }
  auto all = lines();
  for (auto& line : read_lines(dir_.file("second"))) {
    all.push_back(std::move(line));
  }
  EXPECT_EQ(all.size(), std::size_t{kThreads} * kLines);
  for (const std::string& line : all) {
    EXPECT_TRUE(line.starts_with(kTime + "[test-vm:worker "));
    EXPECT_EQ(line.substr(line.size() - 100), std::string(100, line.back()));
  }
}

TEST(LogLevels, names_are_taken_in_any_case) {
  EXPECT_EQ(parse_log_level("Error").value(), LogLevel::kError);
  EXPECT_EQ(parse_log_level("WARN").value(), LogLevel::kWarn);
  EXPECT_EQ(parse_log_level("warning").value(), LogLevel::kWarn);
  EXPECT_EQ(parse_log_level("iNFO").value(), LogLevel::kInfo);
  EXPECT_EQ(parse_log_level("debug").value(), LogLevel::kDebug);
  EXPECT_EQ(parse_log_level("Trace").value(), LogLevel::kTrace);
  EXPECT_EQ(parse_log_level("off").value(), LogLevel::kOff);
  for (const char* bad : {"", "inf", "infos", " info", "2"}) {
    EXPECT_EQ(parse_log_level(bad).error().code(), ErrorCode::kInvalidArgument) << bad;
  }
}

// A terminal whose reader reads nothing, with room for a line and a part of one, or less.
class StalledTerminal : public ::testing::Test {
 protected:
  static constexpr std::size_t kLine = 3000;
  static constexpr int kMaxLines = 100;

  void SetUp() override {
    int master_fd = -1;
    int slave_fd = -1;
    termios raw{};
    ::cfmakeraw(&raw);
    ASSERT_EQ(::openpty(&master_fd, &slave_fd, nullptr, &raw, nullptr), 0);
    master_ = UniqueFd(master_fd);
    slave_ = UniqueFd(slave_fd);
    stall();
  }
  // `more`: bytes of the room that is left to be filled as well.
  void stall(std::size_t more = 0) const {
    // By none of the functions under test: broken ones must fail the tests, not hang them.
    const UniqueFd filler(::open(::ptsname(master_.get()), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    ASSERT_TRUE(filler.valid());
    // What was written moves on to the reader's side a little later and leaves room.
    while (::write(filler.get(), "x", 1) == 1 || has_room(50)) {
    }
    std::array<char, 512> chunk{};
    while (!has_room(50)) {
      ASSERT_GT(::read(master_.get(), chunk.data(), chunk.size()), 0);
    }
    while (more > 0 && ::write(filler.get(), "x", 1) == 1) {
      --more;
    }
  }
  // Writes lines by `write` until one is taken in part or not at all.
  static int until_part(const std::function<std::size_t(std::string_view)>& write) {
    const std::string line(kAtomicLine, 'y');
    for (int i = 0; i < kMaxLines; ++i) {
      if (write(line) < line.size()) {
        return 0;
      }
    }
    return 1;
  }
  bool has_room(int wait_ms) const {
    pollfd ready{.fd = slave_.get(), .events = POLLOUT, .revents = 0};
    return ::poll(&ready, 1, wait_ms) == 1;
  }
  // Runs `body` in a child with the terminal as stderr; its exit code. What blocks is ended by the alarm.
  int with_stderr(const std::function<int()>& body) const {
    const pid_t child = ::fork();
    if (child == 0) {
      std::signal(SIGALRM, SIG_DFL);
      ::alarm(20);
      ::_exit(::dup2(slave_.get(), STDERR_FILENO) == STDERR_FILENO ? body() : 90);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "it blocked: " << status;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  UniqueFd master_;
  UniqueFd slave_;
};

// Other tests give the log a file, and it does not go back to stderr: this one runs itself as a new program.
TEST_F(StalledTerminal, a_line_of_log_is_dropped_and_counted_and_does_not_wait) {
  constexpr const char* kInside = "MAYFLY_TEST_INSIDE_STALLED_TERMINAL";
  if (const char* const how = std::getenv(kInside); how != nullptr) {
    if (std::string_view(how) != "shared") {
      open_log_on_stderr();
    }
    const std::string line(kLine, 'y');
    for (int i = 0; i < kMaxLines && metrics().logger.missed_log_count.value() == 0; ++i) {
      if (std::string_view(how) == "signal") {
        log_detail::write_from_signal(LogLevel::kError, MAYFLY_LOG_ORIGIN, line);
      } else {
        LOG_ERROR("%s", line.c_str());
      }
    }
    ::_exit(metrics().logger.missed_log_count.value() == 1 ? 0 : 1);
  }
  for (const char* how : {"own", "shared", "signal"}) {
    stall();
    SCOPED_TRACE(how);
    EXPECT_EQ(with_stderr([how] {
                ::setenv(kInside, how, 1);
                const UniqueFd null = open_file("/dev/null", O_WRONLY, "null device").value();
                ::dup2(null.get(), STDOUT_FILENO);
                ::execl(
                    "/proc/self/exe", "stalled",
                    "--gtest_filter=StalledTerminal.a_line_of_log_is_dropped_and_counted_and_does_not_wait",
                    nullptr);
                return 91;
              }),
              0);
  }
}

TEST_F(StalledTerminal, an_own_description_of_it_takes_a_part_and_does_not_wait) {
  const int flags = ::fcntl(slave_.get(), F_GETFL);
  EXPECT_EQ(with_stderr([] {
              const UniqueFd own = reopen_for_lines(STDERR_FILENO);
              return own ? until_part([&](std::string_view line) { return write_once(own.get(), line); }) : 2;
            }),
            0);
  EXPECT_EQ(::fcntl(slave_.get(), F_GETFL), flags);
  EXPECT_EQ(flags & O_NONBLOCK, 0);
}

TEST_F(StalledTerminal, the_shared_description_takes_a_part_and_does_not_wait) {
  // The kernel takes 2048 bytes at a time, as long as there is any room: a write that does not ask before
  // waits in half of all cases. Four fillings of a line's length meet one.
  for (const unsigned more : {0U, 1024U, 2048U, 3072U}) {
    SCOPED_TRACE(more);
    stall(more);
    EXPECT_EQ(with_stderr([] {
                return until_part([](std::string_view line) { return write_shared(STDERR_FILENO, line); });
              }),
              0);
  }
}

TEST_F(StalledTerminal, what_cannot_be_opened_again_has_no_own_description) {
  EXPECT_FALSE(reopen_for_lines(slave_.get(), "/nowhere").valid());
  EXPECT_FALSE(reopen_for_lines(-1).valid());
  const int ptmx = ::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
  ASSERT_GE(ptmx, 0);
  const UniqueFd new_master(ptmx);
  EXPECT_FALSE(reopen_for_lines(ptmx).valid());
}

TEST(LineSink, a_socket_that_is_full_or_left_takes_nothing_and_does_not_block) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  const std::string line(kAtomicLine, 'x');
  while (write_shared(writer.get(), line) == line.size()) {
  }
  EXPECT_EQ(write_shared(writer.get(), line), 0U);
  reader.reset();
  EXPECT_EQ(write_shared(writer.get(), line), 0U);  // and no SIGPIPE
}

TEST(LineSink, of_devices_only_terminals_and_null_and_its_like_are_outputs) {
  const TempDir dir;
  for (const char* path : {"/dev/null", "/dev/zero", "/dev/full"}) {
    EXPECT_TRUE(open_line_file(path, "log file")) << path;
  }
  EXPECT_TRUE(open_line_file(dir.fifo("fifo"), "log file"));
  EXPECT_TRUE(open_line_file(dir.file("new"), "log file"));
  const UniqueFd terminal(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  std::array<char, 64> name{};
  if (terminal && ::unlockpt(terminal.get()) == 0 &&
      ::ptsname_r(terminal.get(), name.data(), name.size()) == 0) {
    EXPECT_TRUE(open_line_file(name.data(), "log file"));
  }
  const std::string why = ": can be a file, a FIFO, a terminal or /dev/null, and no other device or socket";
  for (const char* path : {"/dev/kmsg", "/dev/mem", "/dev/kvm", "/dev/net/tun", "/dev/random"}) {
    if (::access(path, F_OK) == 0) {
      const auto opened = open_line_file(path, "log file");
      ASSERT_FALSE(opened) << path;
      EXPECT_EQ(opened.error().message(), "log file " + std::string(path) + why);
    }
  }
}

TEST(LineSink, a_socket_is_no_output) {
  const TempDir dir;
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  dir.file("s").copy(address.sun_path, sizeof(address.sun_path) - 1);
  // SAFETY: as bind(2) wants it.
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_FALSE(open_line_file(dir.file("s"), "log file"));
}

TEST(LineSink, a_file_takes_a_line_as_it_is) {
  const TempDir dir;
  const UniqueFd file = open_file(dir.file("err"), O_WRONLY | O_CREAT, "file").value();
  EXPECT_FALSE(reopen_for_lines(file.get()).valid());
  EXPECT_EQ(write_shared(file.get(), "line\n"), 5U);
  EXPECT_EQ(read_lines(dir.file("err")), std::vector<std::string>{"line"});
}

TEST(LineSink, a_blocking_pipe_without_room_or_reader_takes_nothing_and_does_not_block) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::pipe2(fds.data(), O_CLOEXEC), 0);
  UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  const std::string line(kAtomicLine, 'x');
  std::size_t taken = 0;
  while (write_shared(writer.get(), line) == line.size()) {
    taken += line.size();
  }
  EXPECT_GT(taken, 0U);
  EXPECT_EQ(write_shared(writer.get(), line), 0U);
  reader.reset();
  const auto before = std::signal(SIGPIPE, SIG_IGN);
  EXPECT_EQ(write_shared(writer.get(), line), 0U);
  std::signal(SIGPIPE, before);
  EXPECT_EQ(write_shared(-1, line), 0U);
}

TEST(ThreadName, is_known_to_the_kernel_as_well_and_cut_where_it_is_too_long) {
  std::thread([] {
    EXPECT_FALSE(thread_name().empty());
    set_thread_name("mayfly_vcpu 31 and more");
    EXPECT_EQ(thread_name(), "mayfly_vcpu 31 ");
    std::array<char, 16> name{};
    ASSERT_EQ(::pthread_getname_np(::pthread_self(), name.data(), name.size()), 0);
    EXPECT_EQ(thread_name(), name.data());
  }).join();
}

}  // namespace
}  // namespace mayfly
