#include "mayfly/process_title.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <cerrno>
#include <string>
#include <vector>

#include "base/file.h"
#include "support/poor_host.h"

namespace mayfly {
namespace {

// One behind the other, each with its NUL.
std::string arguments(const std::vector<std::string>& list) {
  std::string text;
  for (const std::string& each : list) {
    text.append(each).push_back('\0');
  }
  return text;
}

std::string shown() {
  constexpr std::size_t kMost = 65536;
  return read_file("/proc/self/cmdline", "this process", kMost).value_or("");
}

// As for a fork of a template that becomes a clone.
TEST(ProcessTitle, is_another_as_often_as_asked_for_where_it_can_only_be_written_over_the_first) {
  testing::where_refused(SYS_prctl, EPERM, [] {
    ASSERT_TRUE(set_process_arguments({"a", "[fork"}));
    EXPECT_TRUE(shown().starts_with(arguments({"a", "[fork"}))) << shown();
    ASSERT_TRUE(set_process_arguments({"b", "c"}));
    EXPECT_TRUE(shown().starts_with(arguments({"b", "c", ""}))) << shown();
    EXPECT_FALSE(set_process_arguments({std::string(1 << 20, 'x')})) << "longer than what there is";
    EXPECT_TRUE(shown().starts_with(arguments({"b", "c", ""}))) << shown();
  });
}

}  // namespace
}  // namespace mayfly
