#include "seccomp/compiler/compile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <functional>
#include <limits>

namespace mayfly::seccomp {
namespace {

using testing::HasSubstr;

// Instrumented programs make calls of their own, which a filter of a few rules does not allow.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kInstrumented = true;
#else
constexpr bool kInstrumented = false;
#endif

Policy policy(FilteredThread thread, std::vector<Rule> rules = {}) {
  rules.push_back({SYS_exit_group, {}});
  return {thread, std::move(rules)};
}

std::vector<Policy> with_monitor(std::vector<Rule> rules) {
  return {policy(FilteredThread::kMonitor, std::move(rules)), policy(FilteredThread::kApi),
          policy(FilteredThread::kVcpu), policy(FilteredThread::kSnapshot), policy(FilteredThread::kGuard)};
}

// The exit code of a child that is confined and does this, or the number of the signal that ended it,
// negative.
int confined(const std::vector<Policy>& policies, const std::function<int()>& body) {
  const auto file = compile(policies);
  EXPECT_TRUE(file.has_value()) << file.error().message();
  const pid_t child = ::fork();
  if (child == 0) {
    const auto filters = Filters::parse(*file);
    ::_exit(filters && filters->confine(FilteredThread::kMonitor) ? body() : 99);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(Compile, needs_one_policy_for_each_thread_but_those_that_came_later) {
  auto policies = with_monitor({});
  for ([[maybe_unused]] const char* thread : {"guard", "snapshot"}) {
    policies.pop_back();
    EXPECT_TRUE(compile(policies).has_value());
  }
  policies.pop_back();
  EXPECT_THAT(compile(policies).error().message(), HasSubstr("no policy for thread vcpu"));
  policies.push_back(policy(FilteredThread::kApi));
  EXPECT_THAT(compile(policies).error().message(), HasSubstr("two policies for thread api"));
}

TEST(Compile, what_is_allowed_works_and_what_is_not_ends_by_sigsys) {
  if (kInstrumented) {
    GTEST_SKIP() << "an instrumented program makes system calls of its own";
  }
  const auto policies = with_monitor({{SYS_getppid, {}}});
  EXPECT_EQ(confined(policies, [] { return ::syscall(SYS_getppid) > 0 ? 0 : 1; }), 0);
  EXPECT_EQ(confined(policies, [] { return static_cast<int>(::syscall(SYS_getuid)); }), -SIGSYS);
}

TEST(Compile, arguments_are_compared_under_their_mask_in_all_their_bits) {
  if (kInstrumented) {
    GTEST_SKIP() << "an instrumented program makes system calls of its own";
  }
  constexpr std::uint64_t kAll = std::numeric_limits<std::uint64_t>::max();
  const auto policies = with_monitor(
      {{SYS_getppid, {{.index = 5, .mask = kAll, .value = 0x1'0000'0002}}},
       {SYS_getppid, {{.index = 0, .mask = 4, .value = 0}, {.index = 1, .mask = UINT32_MAX, .value = 7}}}});
  const auto call = [&policies](std::uint64_t first, std::uint64_t second, std::uint64_t last) {
    return confined(policies,
                    [=] { return ::syscall(SYS_getppid, first, second, 0, 0, 0, last) > 0 ? 0 : 1; });
  };
  EXPECT_EQ(call(4, 0, 0x1'0000'0002), 0);
  EXPECT_EQ(call(4, 0, 2), -SIGSYS);
  EXPECT_EQ(call(4, 0, 0x2'0000'0002), -SIGSYS);
  EXPECT_EQ(call(3, 7, 0), 0);
  EXPECT_EQ(call(7, 7, 0), -SIGSYS);
  EXPECT_EQ(call(3, 8, 0), -SIGSYS);
  EXPECT_EQ(call(3, 0xffff'ffff'0000'0007, 0), 0) << "of an int the upper bits are nobody's";
}

}  // namespace
}  // namespace mayfly::seccomp
