#include "jail.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mayfly::jail {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

Options options_with(std::vector<std::string> arguments) {
  Options options;
  options.id = "vm1";
  options.exec_file = "/usr/bin/mayfly";
  options.exec_name = "mayfly";
  options.uid = 1000;
  options.gid = 100;
  options.monitor_arguments = std::move(arguments);
  return options;
}

TEST(MonitorArguments, the_monitor_learns_its_id_and_when_it_all_began) {
  EXPECT_THAT(monitor_arguments(options_with({"--no-api", "--config-file", "c"}),
                                {.monotonic_us = 1, .cpu_us = 2}, 3),
              ElementsAre("mayfly", "--id", "vm1", "--start-time-us", "1", "--start-time-cpu-us", "2",
                          "--parent-cpu-time-us", "3", "--no-api", "--config-file", "c"));
}

TEST(MonitorArguments, the_control_api_has_its_place_unless_another_is_named) {
  const auto joined = [](std::vector<std::string> own) {
    std::string all;
    for (const std::string& one : monitor_arguments(options_with(std::move(own)), {}, 0)) {
      all += one + " ";
    }
    return all;
  };
  EXPECT_THAT(joined({}), HasSubstr("--api-sock /run/mayfly.socket "));
  EXPECT_THAT(joined({"--config-file", "c"}), HasSubstr("c --api-sock /run/mayfly.socket "));
  EXPECT_THAT(joined({"--api-sock", "/a"}), Not(HasSubstr("mayfly.socket")));
  EXPECT_THAT(joined({"--api-sock=/a"}), Not(HasSubstr("mayfly.socket")));
  EXPECT_THAT(joined({"--no-api"}), Not(HasSubstr("--api-sock")));
  EXPECT_THAT(joined({"run", "--kernel", "k"}), Not(HasSubstr("--api-sock")));
}

TEST(Describe, what_would_be_done_is_told_in_its_order) {
  Plan plan;
  plan.options = options_with({});
  plan.options.netns = "/run/netns/a";
  plan.options.new_pid_ns = true;
  plan.options.core_scheduling = true;
  plan.tree = {
      .base = "/srv/jailer", .name = "mayfly", .id = "vm1", .user = 1000, .group = 100, .devices = {}};
  plan.cgroups = {{.hierarchy = {.path = "/cg/pids", .version = CgroupVersion::k1, .controllers = {}},
                   .group = "mayfly/vm1",
                   .settings = {{"pids.max", "9"}}}};
  plan.limits = jail_limits(plan.options);
  plan.landlock = 4;
  const std::string text = describe(plan);
  std::size_t at = 0;
  for (const char* const line :
       {"make the folder /srv/jailer/mayfly/vm1/root", "copy /usr/bin/mayfly",
        "make the cgroup /cg/pids/mayfly/vm1", "set /cg/pids/mayfly/vm1/pids.max to 9", "PID namespace",
        "join the network namespace /run/netns/a", "the root directory", "limit no-file to 2048",
        "join the cgroup", "sibling threads", "bounding set", "become user 1000, group 100",
        "drop all capabilities", "Landlock, version 4", "terminal", "execute"}) {
    const std::size_t found = text.find(line, at);
    ASSERT_NE(found, std::string::npos) << line << " does not follow in\n" << text;
    at = found;
  }
}

}  // namespace
}  // namespace mayfly::jail
