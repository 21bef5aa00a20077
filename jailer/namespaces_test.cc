#include "namespaces.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "support/temp_dir.h"

namespace mayfly::jail {
namespace {

using ::testing::HasSubstr;

// What entering namespaces does is tested from outside, with root: tests/integration/jailer_test.py.

TEST(Netns, what_is_no_namespace_is_refused_without_waiting_for_it) {
  const testing::TempDir dir;
  const std::string fifo = dir.file("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  for (const std::string& path : {fifo, dir.file(""), std::string("/dev/null")}) {
    const auto netns = open_netns(path);
    ASSERT_FALSE(netns) << path;
    EXPECT_THAT(netns.error().message(), HasSubstr("--netns \"" + path + "\": is no network namespace"));
  }
  EXPECT_THAT(open_netns(dir.file("none")).error().message(), HasSubstr("No such file"));
}

TEST(Netns, a_namespace_is_opened) {
  EXPECT_TRUE(open_netns("/proc/self/ns/net"));
}

TEST(Cores, a_host_without_core_scheduling_is_told_what_it_lacks) {
  const auto claimed = claim_cores();
  if (!claimed) {
    EXPECT_EQ(claimed.error().code(), ErrorCode::kUnsupported);
    EXPECT_THAT(claimed.error().message(), HasSubstr("--core-scheduling"));
    EXPECT_THAT(claimed.error().message(), HasSubstr("CONFIG_SCHED_CORE"));
  }
}

}  // namespace
}  // namespace mayfly::jail
