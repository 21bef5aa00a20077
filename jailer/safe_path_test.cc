#include "safe_path.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "support/temp_dir.h"

namespace mayfly::jail {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class SafePath : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return dir_.file(name); }
  UniqueFd open(const std::string& where) const {
    return UniqueFd(::open(where.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  testing::TempDir dir_;
};

TEST_F(SafePath, a_path_is_followed_as_far_as_it_is_there) {
  fs::create_directories(path("a/b"));
  const auto whole = follow(path("a/b"));
  ASSERT_TRUE(whole) << whole.error().message();
  EXPECT_EQ(whole->path, path("a/b"));
  EXPECT_EQ(whole->missing, "");
  const auto part = follow(path("a/c/d"));
  ASSERT_TRUE(part);
  EXPECT_EQ(part->path, path("a"));
  EXPECT_EQ(part->missing, "c/d");
}

TEST_F(SafePath, a_link_on_the_way_is_refused_by_name) {
  fs::create_directories(path("a/b"));
  fs::create_directory_symlink(path("a"), path("link"));
  fs::create_directory_symlink("a", path("relative"));
  for (const char* const name : {"link", "link/b", "relative/b"}) {
    const auto found = follow(path(name));
    ASSERT_FALSE(found) << name;
    EXPECT_THAT(found.error().message(), HasSubstr("is a symbolic link"));
  }
}

TEST_F(SafePath, what_is_no_directory_is_refused_by_name) {
  std::ofstream(path("file")) << "x";
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  for (const char* const name : {"file", "fifo", "file/a"}) {
    const auto found = follow(path(name));
    ASSERT_FALSE(found) << name;
    EXPECT_THAT(found.error().message(), HasSubstr("is not a directory"));
  }
}

TEST_F(SafePath, a_directory_that_others_may_change_is_refused) {
  fs::create_directories(path("a/b"));
  for (const mode_t mode : {0777U, 0770U, 0702U}) {
    ASSERT_EQ(::chmod(path("a").c_str(), mode), 0);
    const auto found = follow(path("a/b"));
    ASSERT_FALSE(found) << mode;
    EXPECT_THAT(found.error().message(), HasSubstr(path("a") + ": others may write to it"));
  }
  ASSERT_EQ(::chmod(path("a").c_str(), 01777), 0);
  EXPECT_TRUE(follow(path("a/b"))) << "sticky, as /tmp is";
}

TEST(ServerOf, the_user_is_that_of_the_mount_and_only_of_file_systems_that_say_so) {
  constexpr const char* kMounts =
      "24 1 254:0 / / rw - ext4 /dev/vda rw\n"
      "36 24 0:50 / /srv/a rw,nosuid,nodev - fuse.name na\\040me rw,user_id=1000,group_id=7,allow_other\n"
      "37 24 0:51 / /srv/,user_id=5 rw - fuse name rw,group_id=7\n"
      "38 24 0:52 / /srv/c rw - fuse name rw,user_id=0";
  EXPECT_EQ(server_of(kMounts, "36").user, 1000U);
  EXPECT_EQ(server_of(kMounts, "38").user, 0U);
  for (const char* const none : {"24", "37"}) {
    EXPECT_TRUE(server_of(kMounts, none).is_mounted) << none;
    EXPECT_EQ(server_of(kMounts, none).user, std::nullopt) << none;
  }
  for (const char* const none : {"3", "6", "", "99"}) {
    EXPECT_FALSE(server_of(kMounts, none).is_mounted) << none;
  }
}

// What a child that did not come to its end, or could not begin, is known by.
constexpr int kNoMount = 77;

// By a user's mount that nobody serves: the kernel answers what is asked here of a process that is not that
// user's without asking him.
TEST_F(SafePath, what_another_user_serves_is_refused_also_once_it_is_unmounted) {
  fs::create_directories(path("served"));
  const pid_t child = ::fork();
  if (child == 0) {
    const UniqueFd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    const std::string options =
        "fd=" + std::to_string(device.get()) + ",rootmode=40755,user_id=12345,group_id=12345";
    if (!device || ::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("test", path("served").c_str(), "fuse", MS_NODEV | MS_NOSUID, options.c_str()) != 0) {
      ::_exit(kNoMount);
    }
    const UniqueFd folder(::open(path("served").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    const auto refused_as = [&folder](const char* what) {
      const auto checked = check_server(folder, "served");
      return !checked && checked.error().message().find(what) != std::string::npos;
    };
    const bool mounted = refused_as("user 12345");
    ::umount2(path("served").c_str(), MNT_DETACH);
    const bool unmounted = refused_as("not mounted here");
    ::_exit((mounted ? 0 : 1) | (unmounted ? 0 : 2));
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoMount) {
    GTEST_SKIP() << "this user may not mount FUSE file systems of others";
  }
  EXPECT_EQ(status, 0) << WEXITSTATUS(status);
}

TEST_F(SafePath, a_folder_is_opened_in_its_parent_and_nowhere_else) {
  fs::create_directories(path("a"));
  const UniqueFd parent = open(path("a"));
  EXPECT_FALSE(open_folder(parent, "..", "up"));
  EXPECT_FALSE(open_folder(parent, "/", "root"));
  EXPECT_EQ(open_folder(parent, "none", "none").error().os_errno(), ENOENT);
}

TEST_F(SafePath, contents_are_removed_with_all_that_was_prepared_in_them_and_nothing_else) {
  fs::create_directories(path("outside/kept"));
  std::ofstream(path("outside/file")) << "kept";
  fs::create_directories(path("jail/a/b/c"));
  fs::create_directory_symlink(path("outside"), path("jail/a/link"));
  fs::create_symlink(path("outside/file"), path("jail/a/b/file_link"));
  fs::create_hard_link(path("outside/file"), path("jail/hard"));
  ASSERT_EQ(::mkfifo(path("jail/fifo").c_str(), 0600), 0);
  std::ofstream(path("jail/a/.removed-1")) << "x";
  const UniqueFd jail = open(path("jail"));
  const auto removed = remove_contents(jail, path("jail"));
  ASSERT_TRUE(removed) << removed.error().message();
  EXPECT_TRUE(fs::is_empty(path("jail")));
  EXPECT_TRUE(fs::exists(path("outside/kept")));
  EXPECT_TRUE(fs::exists(path("outside/file")));
}

TEST_F(SafePath, folders_as_deep_as_they_can_be_are_removed_with_few_descriptors) {
  // More levels than a path can name, and than a process may have open.
  const std::string name(40, 'd');
  fs::create_directories(path("jail/.removed-1/x"));
  UniqueFd at = open(path("jail"));
  for (int level = 0; level < 300; ++level) {
    ASSERT_EQ(::mkdirat(at.get(), name.c_str(), 0700), 0);
    at = UniqueFd(::openat(at.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(at);
  }
  at.reset();
  rlimit few{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &few), 0);
  const rlim_t before = std::exchange(few.rlim_cur, 100);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  const UniqueFd jail = open(path("jail"));
  const auto removed = remove_contents(jail, path("jail"));
  few.rlim_cur = before;
  ::setrlimit(RLIMIT_NOFILE, &few);
  ASSERT_TRUE(removed) << removed.error().message();
  EXPECT_TRUE(fs::is_empty(path("jail")));
}

}  // namespace
}  // namespace mayfly::jail
