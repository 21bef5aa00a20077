#include "landlock.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <netinet/in.h>
#include <bit>
#include <filesystem>
#include <fstream>
#include <functional>

#include "support/temp_dir.h"

namespace mayfly::jail {
namespace {

namespace fs = std::filesystem;

TEST(Landlock, each_version_handles_what_it_knows) {
  EXPECT_EQ(landlock_rights(1).files, 0x1fffU);
  EXPECT_EQ(landlock_rights(2).files, 0x3fffU);
  EXPECT_EQ(landlock_rights(3).files, 0x7fffU);
  EXPECT_EQ(landlock_rights(5).files, 0xffffU);
  EXPECT_EQ(landlock_rights(3).net, 0U);
  EXPECT_EQ(landlock_rights(4).net, 3U);
  EXPECT_EQ(landlock_rights(5).scoped, 0U);
  EXPECT_EQ(landlock_rights(99).scoped, 3U);
}

TEST(Landlock, the_jail_grants_no_more_than_its_version_knows_and_never_to_execute) {
  for (int version = 1; version < 10; ++version) {
    EXPECT_EQ(landlock_jail_rights(version) & ~landlock_rights(version).files, 0U) << version;
    EXPECT_EQ(landlock_jail_rights(version) & landlock_monitor_rights(), 0U) << version;
  }
}

class Confined : public ::testing::Test {
 protected:
  void SetUp() override {
    version_ = landlock_version();
    if (version_ == 0) {
      GTEST_SKIP() << "no Landlock";
    }
    fs::create_directories(dir_.file("jail/folder"));
    fs::create_directories(dir_.file("outside"));
    std::ofstream(dir_.file("jail/file")) << "x";
    std::ofstream(dir_.file("outside/file")) << "x";
    fs::copy_file("/proc/self/exe", dir_.file("jail/monitor"));
    fs::copy_file("/proc/self/exe", dir_.file("jail/other"));
  }

  // Whether `act` says yes in a process that is confined.
  bool is_possible(const std::function<bool()>& act) const {
    const pid_t child = ::fork();
    if (child == 0) {
      const bool is_confined = ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                               confine(version_, dir_.file("jail"), dir_.file("jail/monitor"));
      ::_exit(!is_confined ? 2 : act() ? 0 : 1);
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    EXPECT_NE(WEXITSTATUS(status), 2) << "could not be confined";
    return status == 0;
  }
  bool can_open(const std::string& name, int flags) const {
    return is_possible([&] { return ::open(dir_.file(name).c_str(), flags | O_CLOEXEC, 0600) >= 0; });
  }

  testing::TempDir dir_;
  int version_ = 0;
};

TEST_F(Confined, files_of_the_jail_are_read_written_made_and_removed) {
  EXPECT_TRUE(can_open("jail/file", O_RDWR));
  EXPECT_TRUE(can_open("jail", O_RDONLY | O_DIRECTORY));
  EXPECT_TRUE(can_open("jail/new", O_RDWR | O_CREAT | O_TRUNC));
  EXPECT_TRUE(is_possible([&] { return ::unlink(dir_.file("jail/new").c_str()) == 0; }));
}

TEST_F(Confined, files_outside_are_neither_read_nor_listed_nor_made) {
  EXPECT_FALSE(can_open("outside/file", O_RDONLY));
  EXPECT_FALSE(can_open("jail/../outside/file", O_RDONLY));
  EXPECT_FALSE(can_open("outside", O_RDONLY | O_DIRECTORY));
  EXPECT_FALSE(can_open("outside/new", O_WRONLY | O_CREAT));
}

TEST_F(Confined, a_descriptor_that_leaked_leads_nowhere) {
  const int outside = ::open(dir_.file("outside").c_str(), O_PATH | O_CLOEXEC);
  EXPECT_FALSE(is_possible([=] { return ::openat(outside, "file", O_RDONLY | O_CLOEXEC) >= 0; }));
  ::close(outside);
}

TEST_F(Confined, no_folders_links_fifos_or_nodes_are_made) {
  EXPECT_FALSE(is_possible([&] { return ::mkdir(dir_.file("jail/new").c_str(), 0700) == 0; }));
  EXPECT_FALSE(is_possible([&] { return ::rmdir(dir_.file("jail/folder").c_str()) == 0; }));
  EXPECT_FALSE(is_possible([&] { return ::symlink("/etc", dir_.file("jail/new").c_str()) == 0; }));
  EXPECT_FALSE(is_possible([&] { return ::mkfifo(dir_.file("jail/new").c_str(), 0600) == 0; }));
}

TEST_F(Confined, nothing_but_the_monitor_is_executed) {
  const auto execute = [&](const char* name) {
    return is_possible([&] {
      ::execl(dir_.file(name).c_str(), name, "--gtest_list_tests", "--gtest_filter=-*", nullptr);
      return false;
    });
  };
  EXPECT_FALSE(execute("jail/other"));
  EXPECT_FALSE(is_possible([] {
    ::execl("/bin/true", "true", nullptr);
    return false;
  }));
}

TEST_F(Confined, tcp_and_signals_to_the_outside_are_refused_where_the_version_knows_them) {
  if (version_ < 6) {
    GTEST_SKIP() << "Landlock " << version_ << " has neither";
  }
  EXPECT_FALSE(is_possible([] {
    const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in any{.sin_family = AF_INET, .sin_port = 0, .sin_addr = {}, .sin_zero = {}};
    // SAFETY: the sockets interface takes every kind of address by its common beginning.
    return ::bind(listener, reinterpret_cast<sockaddr*>(&any), sizeof any) == 0;
  }));
  EXPECT_FALSE(is_possible([] { return ::kill(::getppid(), 0) == 0; }));
}

}  // namespace
}  // namespace mayfly::jail
