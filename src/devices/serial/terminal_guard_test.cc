#include "devices/serial/terminal_guard.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/crash.h"
#include "base/unique_fd.h"
#include "devices/serial/console.h"
#include "support/fake_event.h"

namespace mayfly {
namespace {

class TerminalGuardTest : public ::testing::Test {
 public:
  void SetUp() override {
    int master_fd = -1;
    int slave_fd = -1;
    ASSERT_EQ(::openpty(&master_fd, &slave_fd, nullptr, nullptr, nullptr), 0);
    master = UniqueFd(master_fd);
    slave = UniqueFd(slave_fd);
    original = modes();
    ASSERT_NE(original.c_lflag & ICANON, 0U);
  }
  termios modes() const {
    termios now{};
    EXPECT_EQ(::tcgetattr(slave.get(), &now), 0);
    return now;
  }
  bool raw() const { return (modes().c_lflag & (ICANON | ECHO | ISIG)) == 0; }
  void expect_original() const {
    const termios now = modes();
    EXPECT_EQ(now.c_lflag, original.c_lflag);
    EXPECT_EQ(now.c_iflag, original.c_iflag);
    EXPECT_EQ(now.c_oflag, original.c_oflag);
    EXPECT_EQ(now.c_cc[VMIN], original.c_cc[VMIN]);
  }
  // Runs `body` in a child; its wait status.
  static int in_child(const std::function<void()>& body) {
    const pid_t child = ::fork();
    if (child == 0) {
      body();
      ::_exit(0);
    }
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, WUNTRACED), child);
    return status;
  }

  UniqueFd master;
  UniqueFd slave;
  termios original{};
};

TEST_F(TerminalGuardTest, the_terminal_is_raw_while_the_guard_lives_and_keeps_its_output_side) {
  {
    const auto guard = TerminalGuard::enter(slave.get()).value();
    ASSERT_NE(guard, nullptr);
    EXPECT_TRUE(raw());
    EXPECT_EQ(modes().c_iflag & (ICRNL | IXON), 0U);
    EXPECT_EQ(modes().c_oflag, original.c_oflag);
  }
  expect_original();
}

TEST_F(TerminalGuardTest, control_keys_reach_the_reader_as_bytes) {
  const auto guard = TerminalGuard::enter(slave.get()).value();
  ASSERT_EQ(::write(master.get(), "\x03\x1a\r", 3), 3);
  std::array<char, 4> got{};
  EXPECT_EQ(::read(slave.get(), got.data(), got.size()), 3);
  EXPECT_EQ(std::string(got.data()), "\x03\x1a\r");
}

TEST_F(TerminalGuardTest, what_is_not_a_terminal_needs_no_guard) {
  const UniqueFd null = open_file("/dev/null", O_RDONLY, "null device").value();
  EXPECT_EQ(TerminalGuard::enter(null.get()).value(), nullptr);
  EXPECT_EQ(TerminalGuard::enter(-1).value(), nullptr);
}

TEST_F(TerminalGuardTest, a_second_guard_is_refused_until_the_first_is_gone) {
  auto guard = TerminalGuard::enter(slave.get()).value();
  const auto second = TerminalGuard::enter(slave.get());
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code(), ErrorCode::kBusy);
  EXPECT_TRUE(raw());
  guard.reset();
  EXPECT_TRUE(TerminalGuard::enter(slave.get()).has_value());
}

TEST_F(TerminalGuardTest, the_guard_outlives_the_descriptor_it_was_given) {
  UniqueFd copy(::fcntl(slave.get(), F_DUPFD_CLOEXEC, 0));
  ASSERT_TRUE(copy.valid());
  const auto guard = TerminalGuard::enter(copy.get()).value();
  copy.reset();
  restore_terminal();
  expect_original();
}

TEST_F(TerminalGuardTest, restoring_keeps_errno_and_may_be_repeated) {
  const auto guard = TerminalGuard::enter(slave.get()).value();
  errno = EXDEV;
  restore_terminal();
  restore_terminal();
  EXPECT_EQ(errno, EXDEV);
  expect_original();
  EXPECT_TRUE(guard->refresh().has_value());
  EXPECT_TRUE(raw());
}

TEST_F(TerminalGuardTest, exit_restores_the_terminal) {
  const int status = in_child([&] {
    const auto guard = TerminalGuard::enter(slave.get());
    if (!raw()) {
      ::_exit(9);
    }
    std::exit(3);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
  expect_original();
}

TEST_F(TerminalGuardTest, every_signal_of_a_crash_restores_the_terminal_and_still_ends_the_process) {
  for (const int signal :
       {SIGHUP,  SIGSEGV, SIGBUS,  SIGILL,    SIGSYS,  SIGXCPU, SIGFPE, SIGABRT,   SIGTRAP, SIGQUIT,
        SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO,   SIGPWR, SIGSTKFLT, SIGTERM, SIGINT}) {
    const int status = in_child([&] {
      static_cast<void>(::signal(signal, SIG_DFL));  // a sanitizer has its own
      const auto guard = TerminalGuard::enter(slave.get());
      if (!install_crash_handlers() || !raw()) {
        ::_exit(0);
      }
      ::kill(::getpid(), signal);
    });
    EXPECT_TRUE(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0)) << signal;
    expect_original();
  }
}

TEST_F(TerminalGuardTest, abort_restores_the_terminal) {
  const int status = in_child([&] {
    static_cast<void>(::signal(SIGABRT, SIG_DFL));
    const auto guard = TerminalGuard::enter(slave.get());
    if (install_crash_handlers()) {
      std::abort();
    }
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGABRT);
  expect_original();
}

// The child of a session whose terminal is `slave`, in a process group of its own that is not in the
// foreground. The session's leader puts it there when `to_foreground` has been called in the child.
struct Job {
  std::function<void()> to_foreground;
};

int in_background_job(const UniqueFd& slave, const std::function<int(const Job&)>& body) {
  const pid_t leader = ::fork();
  if (leader == 0) {
    static_cast<void>(::signal(SIGHUP, SIG_IGN));
    std::array<int, 2> request{};
    std::array<int, 2> answer{};
    if (::setsid() < 0 || ::ioctl(slave.get(), TIOCSCTTY, 0) != 0 || ::pipe(request.data()) != 0 ||
        ::pipe(answer.data()) != 0) {
      ::_exit(90);
    }
    const pid_t job = ::fork();
    if (job == 0) {
      ::setpgid(0, 0);
      ::close(request[0]);
      ::close(answer[1]);
      char byte = 0;
      ::_exit(body(Job{[&] {
        if (::write(request[1], &byte, 1) != 1 || ::read(answer[0], &byte, 1) != 1) {
          ::_exit(91);
        }
      }}));
    }
    ::close(request[1]);
    ::close(answer[0]);
    ::setpgid(job, job);
    static_cast<void>(::signal(SIGTTOU, SIG_IGN));
    char byte = 0;
    while (::read(request[0], &byte, 1) == 1) {
      if (::tcsetpgrp(slave.get(), job) != 0 || ::write(answer[1], &byte, 1) != 1) {
        ::_exit(92);
      }
    }
    int status = 0;
    ::waitpid(job, &status, WUNTRACED);
    if (WIFSTOPPED(status)) {
      ::kill(job, SIGKILL);
      ::_exit(93);
    }
    ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 94);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(leader, &status, 0), leader);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 95;
}

TEST_F(TerminalGuardTest, a_background_job_leaves_the_terminal_alone_until_it_comes_to_the_front) {
  EXPECT_EQ(in_background_job(slave,
                              [&](const Job& job) {
                                auto guard = TerminalGuard::enter(slave.get());
                                if (!guard || raw()) {
                                  return 1;
                                }
                                job.to_foreground();
                                if (!(*guard)->refresh() || !raw()) {
                                  return 2;
                                }
                                guard->reset();
                                return raw() ? 3 : 0;
                              }),
            0);
  expect_original();
}

TEST_F(TerminalGuardTest, a_console_reads_no_key_that_is_typed_for_the_foreground) {
  EXPECT_EQ(in_background_job(slave,
                              [&](const Job& job) {
                                class NoLine final : public InterruptLine {
                                  void trigger() override {}
                                };
                                auto guard = TerminalGuard::enter(slave.get()).value();
                                testing::ManualRegistrar registrar;
                                SerialMetrics metrics;
                                NoLine line;
                                ConsoleConfig config;
                                config.input = slave.get();
                                config.on_foreground = [&] { static_cast<void>(guard->refresh()); };
                                auto console = Console::create(registrar, std::move(config), metrics);
                                Serial16550 uart(line, **console, metrics);
                                const std::uint8_t enable = 1;
                                uart.bus_write(2, {&enable, 1});
                                uart.bus_write(1, {&enable, 1});
                                if (::write(master.get(), "ls\n", 3) != 3 || !(*console)->start_input(uart)) {
                                  return 1;
                                }
                                std::uint8_t status = 0;
                                uart.bus_read(5, {&status, 1});
                                if (status != 0x60 || raw()) {
                                  return 2;
                                }
                                job.to_foreground();
                                // What the timer does a while later.
                                (*console)->stop_input();
                                if (!(*console)->start_input(uart)) {
                                  return 3;
                                }
                                uart.bus_read(5, {&status, 1});
                                return status == 0x61 && raw() ? 0 : 4;
                              }),
            0);
}

}  // namespace
}  // namespace mayfly
