#include "resource_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

namespace mayfly::jail {
namespace {

std::uint64_t limit_of(const std::vector<Limit>& limits, __rlimit_resource resource) {
  const auto found = std::ranges::find_if(limits, [=](const Limit& one) { return one.resource == resource; });
  return found == limits.end() ? RLIM_INFINITY : found->value;
}

TEST(ResourceLimits, files_are_limited_always_and_cores_are_forbidden) {
  rlimit core{};
  ASSERT_EQ(::getrlimit(RLIMIT_CORE, &core), 0);
  const auto limits = jail_limits(Options{});
  EXPECT_EQ(limit_of(limits, RLIMIT_NOFILE), 2048U);
  EXPECT_EQ(limit_of(limits, RLIMIT_CORE), core.rlim_max == 0 ? 0U : 1U);
  EXPECT_EQ(limit_of(limits, RLIMIT_FSIZE), RLIM_INFINITY);
}

TEST(ResourceLimits, what_is_asked_for_is_limited) {
  Options options;
  options.fsize = 0;
  options.no_file = 7;
  const auto limits = jail_limits(options);
  EXPECT_EQ(limit_of(limits, RLIMIT_NOFILE), 7U);
  EXPECT_EQ(limit_of(limits, RLIMIT_FSIZE), 0U);
}

TEST(ResourceLimits, a_check_lowers_nothing_and_refuses_what_cannot_be_set) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(check_limit({.resource = RLIMIT_NOFILE, .name = "no-file", .value = 20}));
  EXPECT_FALSE(check_limit({.resource = RLIMIT_NOFILE, .name = "no-file", .value = 1ULL << 40U}));
  rlimit after{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, before.rlim_cur);
  EXPECT_EQ(after.rlim_max, before.rlim_max);
}

TEST(ResourceLimits, both_limits_of_the_process_are_set) {
  const pid_t child = ::fork();
  if (child == 0) {
    rlimit now{};
    const bool is_set = set_limit({.resource = RLIMIT_NOFILE, .name = "no-file", .value = 20}).has_value() &&
                        ::getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == 20 && now.rlim_max == 20;
    // Not even root may raise the number of files beyond what the system allows for any process.
    const auto raised = set_limit({.resource = RLIMIT_NOFILE, .name = "no-file", .value = 1ULL << 40U});
    const bool is_told =
        !raised && raised.error().message().find("no-file=1099511627776") != std::string::npos;
    ::_exit(is_set && is_told ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace mayfly::jail
