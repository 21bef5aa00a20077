#include "cgroup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "support/temp_dir.h"

namespace mayfly::jail {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kMounts =
    "24 1 254:0 / / rw - ext4 /dev/vda rw\n"
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 / /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,memory\n"
    "33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    "34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    "35 30 0:28 / /elsewhere rw - cgroup cgroup rw,memory\n"
    "broken\n"
    "36 - cgroup\n";

TEST(CgroupHierarchies, both_versions_are_found_where_they_are_mounted) {
  const auto found = cgroup_hierarchies(kMounts);
  ASSERT_EQ(found.size(), 4U);
  EXPECT_EQ(found[0].path, "/sys/fs/cgroup/cpu,cpuacct");
  EXPECT_THAT(found[0].controllers, ElementsAre("cpu", "cpuacct"));
  EXPECT_EQ(found[1].path, "/sys/fs/cgroup/with space");
  EXPECT_EQ(found[3].path, "/sys/fs/cgroup/unified");
  EXPECT_EQ(found[3].version, CgroupVersion::k2);
}

TEST(ReadsAs, the_kernels_spelling_of_a_value_is_the_value) {
  EXPECT_TRUE(reads_as("512", "512\n"));
  EXPECT_TRUE(reads_as("64M", "67108864\n"));
  EXPECT_TRUE(reads_as("5000", "4096\n"));
  EXPECT_TRUE(reads_as("0,1", "0-1\n"));
  EXPECT_TRUE(reads_as("0-1,3", "0-1,3\n"));
  EXPECT_TRUE(reads_as("50000", "50000 100000\n"));
  EXPECT_TRUE(reads_as("max", "max\n"));
  EXPECT_TRUE(reads_as("-1", "-1\n"));
  EXPECT_TRUE(reads_as("8:0 1048576", "7:0 5\n8:0 1048576\n"));
  EXPECT_TRUE(reads_as("-1", "9223372036854771712\n"));
  EXPECT_TRUE(reads_as("8E", "9223372036854771712\n"));
  EXPECT_TRUE(reads_as("1T", "1099511627776\n"));
  EXPECT_TRUE(reads_as("2p", "2251799813685248\n"));
  EXPECT_TRUE(reads_as("+5", "5\n"));
  EXPECT_TRUE(reads_as("max", "max 100000\n"));
  EXPECT_TRUE(reads_as("200", "default 200\n"));
  EXPECT_TRUE(reads_as("200", "default 200\n8:0 100\n"));
}

TEST(ReadsAs, of_a_format_that_is_not_known_the_kernels_word_is_taken) {
  EXPECT_TRUE(reads_as("0-3:2/4", "0-1\n"));
  EXPECT_TRUE(reads_as("8:0 rbps=1048576", "8:0 rbps=1048576 wbps=max riops=max wiops=max\n"));
  EXPECT_TRUE(reads_as("8:0 rbps=max", ""));
  EXPECT_TRUE(reads_as("root", "root invalid\n"));
}

TEST(ReadsAs, another_value_is_not) {
  EXPECT_FALSE(reads_as("512", "1024\n"));
  EXPECT_FALSE(reads_as("5", "50\n"));
  EXPECT_FALSE(reads_as("64M", "67104768\n"));
  EXPECT_FALSE(reads_as("0-1", "0\n"));
  EXPECT_FALSE(reads_as("0-1", "\n"));
  EXPECT_FALSE(reads_as("max", "4096\n"));
  EXPECT_FALSE(reads_as("4096", "max\n"));
  EXPECT_FALSE(reads_as("-1", "4096\n"));
  EXPECT_FALSE(reads_as("200", "default 100\n"));
  EXPECT_FALSE(reads_as("50000 100000", "50000 90000\n"));
  EXPECT_FALSE(reads_as("8:0 5", "7:0 5\n8:0 6\n"));
  EXPECT_FALSE(reads_as("+5", "6\n"));
  EXPECT_FALSE(reads_as("99999999999999999999G", "0"));
  EXPECT_FALSE(reads_as("0-4294967295", "0-3"));
}

Options with(std::vector<CgroupSetting> settings, CgroupVersion version = CgroupVersion::k1) {
  Options options;
  options.id = "vm1";
  options.exec_name = "mayfly";
  options.cgroups = std::move(settings);
  options.cgroup_version = version;
  return options;
}

TEST(PlanCgroups, settings_of_one_hierarchy_are_of_one_group) {
  const auto plans =
      plan_cgroups(with({{"cpu.shares", "1"}, {"memory.limit_in_bytes", "2"}, {"cpuacct.usage", "0"}}),
                   cgroup_hierarchies(kMounts));
  ASSERT_TRUE(plans) << plans.error().message();
  ASSERT_EQ(plans->size(), 2U);
  EXPECT_EQ((*plans)[0].group, "mayfly/vm1");
  EXPECT_EQ((*plans)[0].settings.size(), 2U);
  EXPECT_EQ((*plans)[1].hierarchy.path, "/sys/fs/cgroup/with space");
}

TEST(PlanCgroups, a_controller_that_the_host_lacks_is_named_with_its_flag) {
  const auto plans = plan_cgroups(with({{"pids.max", "3"}}), cgroup_hierarchies(kMounts));
  ASSERT_FALSE(plans);
  EXPECT_THAT(plans.error().message(),
              HasSubstr("--cgroup \"pids.max=3\": this host has no controller pids"));
  EXPECT_FALSE(plan_cgroups(with({{"pids.max", "3"}}, CgroupVersion::k2), {}));
}

TEST(PlanCgroups, a_file_of_the_other_version_is_refused_by_name) {
  std::string mounts(kMounts);
  for (const char* const file : {"memory.max", "memory.high", "cpu.weight", "cpu.max"}) {
    const auto plans = plan_cgroups(with({{file, "1"}}), cgroup_hierarchies(mounts));
    ASSERT_FALSE(plans) << file;
    EXPECT_THAT(plans.error().message(), HasSubstr(std::string("--cgroup \"") + file + "=1\": is a file of " +
                                                   "cgroup version 2, which --cgroup-version 2 means"));
  }
  const testing::TempDir dir;
  std::ofstream(dir.file("cgroup.controllers")) << "cpu memory hugetlb pids\n";
  const std::vector<CgroupHierarchy> unified = {
      {.path = dir.file("."), .version = CgroupVersion::k2, .controllers = {}}};
  for (const char* const file :
       {"memory.limit_in_bytes", "cpu.shares", "memory.swappiness", "hugetlb.2MB.limit_in_bytes"}) {
    const auto plans = plan_cgroups(with({{file, "1"}}, CgroupVersion::k2), unified);
    ASSERT_FALSE(plans) << file;
    EXPECT_THAT(plans.error().message(), HasSubstr("is a file of cgroup version 1"));
  }
  EXPECT_TRUE(plan_cgroups(with({{"pids.max", "1"}, {"hugetlb.2MB.max", "1"}}, CgroupVersion::k2), unified));
}

TEST(PlanCgroups, version_2_without_values_joins_the_parent_itself) {
  Options options = with({}, CgroupVersion::k2);
  EXPECT_TRUE(plan_cgroups(options, cgroup_hierarchies(kMounts))->empty());
  options.parent_cgroup = "vms/one";
  const auto plans = plan_cgroups(options, cgroup_hierarchies(kMounts));
  ASSERT_EQ(plans->size(), 1U);
  EXPECT_EQ((*plans)[0].group, "vms/one");
  EXPECT_TRUE((*plans)[0].is_joined_only);
  EXPECT_FALSE(plan_cgroups(options, {}));
}

// A folder in place of a hierarchy: files that the kernel would make are made before.
class CgroupTree : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories(fs::path(dir_.file(name)).parent_path());
    std::ofstream(dir_.file(name)) << text;
  }
  std::string read(const std::string& name) const {
    std::stringstream text;
    text << std::ifstream(dir_.file(name)).rdbuf();
    return text.str();
  }
  CgroupPlan plan(CgroupVersion version, std::vector<CgroupSetting> settings) const {
    return {.hierarchy = {.path = dir_.file("h"), .version = version, .controllers = {"cpu"}},
            .group = "mayfly/vm1",
            .settings = std::move(settings)};
  }

  testing::TempDir dir_;
  Undo undo_;
};

TEST_F(CgroupTree, a_group_that_is_there_is_refused_and_left) {
  write("h/mayfly/vm1/cpu.shares", "7");
  const auto made = make_cgroup(plan(CgroupVersion::k1, {{"cpu.shares", "1"}}), undo_);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), ErrorCode::kBusy);
  EXPECT_THAT(made.error().message(), HasSubstr("jailer --cleanup"));
  EXPECT_TRUE(undo_.run().empty());
  EXPECT_EQ(read("h/mayfly/vm1/cpu.shares"), "7");
}

TEST_F(CgroupTree, what_was_made_goes_when_a_value_cannot_be_set) {
  fs::create_directories(dir_.file("h"));
  const auto made = make_cgroup(plan(CgroupVersion::k1, {{"cpu.shares", "1"}}), undo_);
  ASSERT_FALSE(made) << "there is no such file in a folder";
  EXPECT_THAT(made.error().message(), HasSubstr("--cgroup \"cpu.shares=1\""));
  EXPECT_TRUE(fs::exists(dir_.file("h/mayfly/vm1")));
  EXPECT_TRUE(undo_.run().empty());
  EXPECT_TRUE(fs::is_empty(dir_.file("h")));
}

TEST_F(CgroupTree, a_controller_that_is_handed_down_already_is_not_written) {
  // A sub-tree that was handed over: its parent's file is not ours to write.
  write("h/cgroup.subtree_control", "cpu pids\n");
  write("h/mayfly/cgroup.subtree_control", "");
  const auto made = make_cgroup(plan(CgroupVersion::k2, {{"pids.max", "9"}}), undo_);
  EXPECT_FALSE(made);
  EXPECT_EQ(read("h/cgroup.subtree_control"), "cpu pids\n");
  EXPECT_EQ(read("h/mayfly/cgroup.subtree_control"), "+pids");
  fs::remove(dir_.file("h/mayfly/cgroup.subtree_control"));
}

TEST_F(CgroupTree, a_check_makes_nothing_and_looks_where_another_group_has_its_files) {
  fs::create_directories(dir_.file("h"));
  const auto wanted = plan(CgroupVersion::k1, {{"cpu.shares", "1"}});
  EXPECT_TRUE(check_cgroup(wanted)) << "where there is no group, nobody can know";
  fs::create_directories(dir_.file("h/other"));
  const auto missing = check_cgroup(wanted);
  ASSERT_FALSE(missing);
  EXPECT_THAT(missing.error().message(), HasSubstr("--cgroup \"cpu.shares=1\": look for it in"));
  write("h/other/cpu.shares", "");
  EXPECT_TRUE(check_cgroup(wanted));
  EXPECT_FALSE(fs::exists(dir_.file("h/mayfly")));
  fs::create_directories(dir_.file("h/mayfly/vm1"));
  EXPECT_EQ(check_cgroup(wanted).error().code(), ErrorCode::kBusy);
}

TEST_F(CgroupTree, a_check_refuses_parents_that_cannot_hand_controllers_down) {
  const auto wanted = plan(CgroupVersion::k2, {{"pids.max", "1"}});
  write("h/cgroup.controllers", "cpu pids\n");
  write("h/cgroup.subtree_control", "cpu\n");
  write("h/cgroup.procs", "1\n");
  EXPECT_TRUE(check_cgroup(wanted)) << "the root may have processes";
  write("h/mayfly/cgroup.controllers", "cpu\n");
  write("h/mayfly/cgroup.type", "domain\n");
  write("h/mayfly/cgroup.procs", "7\n");
  EXPECT_THAT(check_cgroup(wanted).error().message(), HasSubstr("mayfly does not have the controller pids"));
  write("h/mayfly/cgroup.controllers", "cpu pids\n");
  EXPECT_THAT(check_cgroup(wanted).error().message(), HasSubstr("while it has processes of its own"));
  write("h/mayfly/cgroup.procs", "");
  EXPECT_TRUE(check_cgroup(wanted));
  write("h/cgroup.subtree_control", "cpu pids\n");
  EXPECT_THAT(check_cgroup(wanted).error().message(), HasSubstr("\"pids.max=1\": look for it in"));
}

TEST_F(CgroupTree, a_parent_to_join_must_be_there) {
  auto wanted = plan(CgroupVersion::k2, {});
  wanted.group = "vms";
  wanted.is_joined_only = true;
  EXPECT_THAT(check_cgroup(wanted).error().message(), HasSubstr("--parent-cgroup \"vms\""));
  write("h/vms/cgroup.procs", "");
  EXPECT_TRUE(check_cgroup(wanted));
}

TEST_F(CgroupTree, the_own_group_is_found_in_each_version) {
  write("h/mine/cgroup.procs", "");
  write("h/mine/tasks", "");
  const CgroupHierarchy v1{.path = dir_.file("h"), .version = CgroupVersion::k1, .controllers = {"cpu"}};
  const CgroupHierarchy v2{.path = dir_.file("h"), .version = CgroupVersion::k2, .controllers = {}};
  EXPECT_TRUE(open_own_cgroup(v1, "3:cpuset:/\n2:cpu,cpuacct:/mine\n0::/other\n"));
  EXPECT_TRUE(open_own_cgroup(v2, "2:cpu:/other\n0::/mine\n"));
  EXPECT_FALSE(open_own_cgroup(v2, "2:cpu:/mine\nbroken\n"));
  EXPECT_FALSE(open_own_cgroup(v1, "2:cpu:/none\n"));
}

TEST_F(CgroupTree, removing_what_is_not_there_is_fine) {
  EXPECT_TRUE(remove_cgroup(dir_.file("none")));
  EXPECT_TRUE(remove_unused_cgroup(dir_.file("none")));
  fs::create_directories(dir_.file("used/by"));
  EXPECT_TRUE(remove_unused_cgroup(dir_.file("used")));
  EXPECT_TRUE(fs::exists(dir_.file("used/by")));
  EXPECT_FALSE(remove_cgroup(dir_.file("used")));
}

}  // namespace
}  // namespace mayfly::jail
