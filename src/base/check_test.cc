#include "base/check.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <string>

#include "base/metrics.h"
#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

TEST(Check, that_holds_does_nothing_and_one_that_does_not_says_what_and_why) {
  MAYFLY_CHECK(1 + 1 == 2, "numbers are numbers");
  EXPECT_DEATH(MAYFLY_CHECK(1 + 1 == 3, "numbers are numbers"),
               "base/check_test.cc:[0-9]+: check failed: 1 \\+ 1 == 3: numbers are numbers\n");
}

TEST(Check, that_fails_is_in_the_last_line_of_metrics) {
  const testing::TempDir dir;
  EXPECT_DEATH(
      {
        if (metrics().open({.path = dir.file("metrics"), .instance_id = {}, .properties = {}})) {
          MAYFLY_CHECK(false, "as wanted");
        }
      },
      "as wanted");
  const auto lines = testing::read_lines(dir.file("metrics"));
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NE(lines[0].find("\"panic_count\":1"), std::string::npos) << lines[0];
}

TEST(Check, that_fails_ends_the_process_though_stderr_takes_nothing) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::pipe2(fds.data(), O_CLOEXEC), 0);
  const UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  // Full, and nobody reads; the description is in blocking mode again when the child gets it.
  ASSERT_EQ(::fcntl(writer.get(), F_SETFL, O_NONBLOCK), 0);
  const std::string filling(4096, 'x');
  while (::write(writer.get(), filling.data(), filling.size()) > 0) {
  }
  ASSERT_EQ(::fcntl(writer.get(), F_SETFL, 0), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);  // a sanitizer has its own
    std::signal(SIGALRM, SIG_DFL);
    ::alarm(20);  // ends what blocks
    ::dup2(writer.get(), STDERR_FILENO);
    MAYFLY_CHECK(false, "as wanted");
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) << status;
}

}  // namespace
}  // namespace mayfly
