#include "cleanup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "record.h"
#include "support/temp_dir.h"
#include "tree.h"

namespace mayfly::jail {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Cleanup : public ::testing::Test {
 protected:
  UniqueFd open(const std::string& name) const {
    return UniqueFd(::open(dir_.file(name).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  Options options() const {
    Options options;
    options.action = Action::kCleanup;
    options.id = "vm1-of-a-unit-test";
    options.exec_name = "no-such-monitor";
    options.chroot_base = dir_.file("base");
    return options;
  }
  testing::TempDir dir_;
};

TEST_F(Cleanup, processes_are_known_by_their_root_directory) {
  fs::create_directories(dir_.file("jail"));
  fs::create_directories(dir_.file("other"));
  for (const char* const name : {"7", "8", "self", "9"}) {
    fs::create_directories(dir_.file(std::string("proc/") + name + "/task/" + name));
  }
  fs::create_directory_symlink(dir_.file("jail"), dir_.file("proc/7/task/7/root"));
  fs::create_directory_symlink(dir_.file("other"), dir_.file("proc/8/task/8/root"));
  fs::create_directory_symlink(dir_.file("jail"), dir_.file("proc/self/task/self/root"));
  const auto found = processes_in(open("jail"), dir_.file("proc"));
  ASSERT_TRUE(found);
  EXPECT_THAT(*found, ElementsAre("7"));
  EXPECT_THAT(*processes_in(open("other"), dir_.file("proc")), ElementsAre("8"));
  EXPECT_THAT(*processes_in(open("proc"), dir_.file("proc")), IsEmpty());
}

TEST_F(Cleanup, a_thread_counts_whose_process_has_no_root_directory_any_more) {
  fs::create_directories(dir_.file("jail"));
  fs::create_directories(dir_.file("proc/7/task/7"));
  fs::create_directories(dir_.file("proc/7/task/9"));
  fs::create_directory_symlink(dir_.file("jail"), dir_.file("proc/7/task/9/root"));
  EXPECT_THAT(*processes_in(open("jail"), dir_.file("proc")), ElementsAre("7"));
}

TEST_F(Cleanup, a_folder_goes_with_all_in_it_and_again_without_complaint) {
  fs::create_directories(dir_.file("base/no-such-monitor/vm1-of-a-unit-test/root/dev/net"));
  std::ofstream(dir_.file("base/no-such-monitor/vm1-of-a-unit-test/root/log")) << "x";
  for (int times = 0; times < 2; ++times) {
    const auto cleaned = clean_up(options());
    ASSERT_TRUE(cleaned) << cleaned.error().message();
    EXPECT_FALSE(fs::exists(dir_.file("base/no-such-monitor")));
  }
}

TEST_F(Cleanup, a_folder_that_is_no_jails_is_refused_and_kept) {
  const std::string jail = "base/no-such-monitor/vm1-of-a-unit-test";
  fs::create_directories(dir_.file(jail + "/info/more"));
  auto cleaned = clean_up(options());
  ASSERT_FALSE(cleaned);
  EXPECT_THAT(cleaned.error().message(), HasSubstr("holds \"info\", so it is no jail's"));
  EXPECT_TRUE(fs::exists(dir_.file(jail + "/info/more")));
  EXPECT_FALSE(fs::exists(dir_.file(jail + "/.jail")));
  fs::rename(dir_.file(jail + "/info"), dir_.file(jail + "/root"));
  cleaned = clean_up(options());
  ASSERT_FALSE(cleaned);
  EXPECT_THAT(cleaned.error().message(), HasSubstr("holds neither dev nor no-such-monitor.pid"));
  EXPECT_TRUE(fs::exists(dir_.file(jail + "/root/more")));
}

TEST_F(Cleanup, a_jail_that_was_removed_in_part_goes) {
  const std::string jail = "base/no-such-monitor/vm1-of-a-unit-test";
  fs::create_directories(dir_.file(jail + "/root/log"));
  fs::create_directories(dir_.file(jail + "/.removed-1/deep"));
  std::ofstream(dir_.file(jail + "/.jail")) << "jail 1\n";
  const auto cleaned = clean_up(options());
  ASSERT_TRUE(cleaned) << cleaned.error().message();
  EXPECT_FALSE(fs::exists(dir_.file("base/no-such-monitor")));
}

TEST_F(Cleanup, a_recorded_group_that_is_none_is_refused_and_kept) {
  const std::string jail = "base/no-such-monitor/vm1-of-a-unit-test";
  fs::create_directories(dir_.file(jail + "/root"));
  fs::create_directories(dir_.file("victim"));
  std::ofstream(dir_.file("victim/cgroup.procs")).flush();
  std::ofstream(dir_.file(jail + "/.jail")) << "jail 1\ncgroup " << dir_.file("victim") << "\n";
  const auto cleaned = clean_up(options());
  ASSERT_FALSE(cleaned);
  EXPECT_THAT(cleaned.error().message(), HasSubstr("is no cgroup"));
  EXPECT_TRUE(fs::exists(dir_.file("victim/cgroup.procs")));
}

TEST_F(Cleanup, a_folder_that_others_may_put_files_in_is_refused_and_kept) {
  const std::string jail = dir_.file("base/no-such-monitor/vm1-of-a-unit-test");
  fs::create_directories(jail + "/root");
  ASSERT_EQ(::chmod(jail.c_str(), 01777), 0);
  const auto cleaned = clean_up(options());
  ASSERT_FALSE(cleaned);
  EXPECT_THAT(cleaned.error().message(), HasSubstr("others may put files there"));
  EXPECT_TRUE(fs::exists(jail + "/root"));
}

TEST_F(Cleanup, the_folders_of_other_jails_stay) {
  fs::create_directories(dir_.file("base/no-such-monitor/vm1-of-a-unit-test/root"));
  fs::create_directories(dir_.file("base/no-such-monitor/vm2/root"));
  ASSERT_TRUE(clean_up(options()));
  EXPECT_FALSE(fs::exists(dir_.file("base/no-such-monitor/vm1-of-a-unit-test")));
  EXPECT_TRUE(fs::exists(dir_.file("base/no-such-monitor/vm2/root")));
}

TEST_F(Cleanup, a_link_in_the_place_of_a_jail_is_refused) {
  fs::create_directories(dir_.file("base/no-such-monitor"));
  fs::create_directories(dir_.file("victim/root"));
  fs::create_directory_symlink(dir_.file("victim"), dir_.file("base/no-such-monitor/vm1-of-a-unit-test"));
  const auto cleaned = clean_up(options());
  ASSERT_FALSE(cleaned);
  EXPECT_THAT(cleaned.error().message(), HasSubstr("is a symbolic link"));
  EXPECT_TRUE(fs::exists(dir_.file("victim/root")));
}

TEST_F(Cleanup, a_jail_that_is_being_made_is_left) {
  fs::create_directories(dir_.file("base/no-such-monitor/vm1-of-a-unit-test/root"));
  const UniqueFd jail = open("base/no-such-monitor/vm1-of-a-unit-test");
  const auto record = lock_record(jail, "jail");
  ASSERT_TRUE(record && *record);
  const auto cleaned = clean_up(options());
  ASSERT_FALSE(cleaned);
  EXPECT_THAT(cleaned.error().message(), HasSubstr("another jailer is at work"));
  EXPECT_TRUE(fs::exists(dir_.file("base/no-such-monitor/vm1-of-a-unit-test/root")));
}

}  // namespace
}  // namespace mayfly::jail
