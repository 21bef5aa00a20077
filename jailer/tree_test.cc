#include "tree.h"

#include <elf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>

#include "support/temp_dir.h"

namespace mayfly::jail {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// All as an ordinary user can: without device nodes, as in a rootless jail.
class TreeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Elf64_Ehdr header{};
    header.e_ident[EI_MAG0] = ELFMAG0;
    header.e_ident[EI_MAG1] = ELFMAG1;
    header.e_ident[EI_MAG2] = ELFMAG2;
    header.e_ident[EI_MAG3] = ELFMAG3;
    header.e_ident[EI_CLASS] = ELFCLASS64;
    // This very program's kind.
    std::ifstream("/proc/self/exe")
        .seekg(offsetof(Elf64_Ehdr, e_machine))
        .read(reinterpret_cast<char*>(&header.e_machine), sizeof header.e_machine);  // SAFETY: a plain number
    header.e_phentsize = sizeof(Elf64_Phdr);
    // SAFETY: the bytes of a structure of plain numbers.
    std::ofstream(dir_.file("mayfly")).write(reinterpret_cast<const char*>(&header), sizeof header);
    ASSERT_EQ(::chmod(dir_.file("mayfly").c_str(), 0755), 0);
    options_.exec_file = dir_.file("mayfly");
    options_.exec_name = "mayfly";
    options_.rootless = true;
    options_.uid = ::getuid() + 1;
    options_.gid = ::getgid() + 1;
    plan_ = {.base = dir_.file("base"),
             .name = "mayfly",
             .id = "vm1",
             .user = ::getuid(),
             .group = ::getgid(),
             .is_rootless = true,
             .devices = {{.path = "kvm", .major = 10, .minor = 232},
                         {.path = "net/tun", .major = 10, .minor = 200}}};
  }
  Result<Tree> make() {
    auto monitor = open_monitor(options_);
    EXPECT_TRUE(monitor) << monitor.error().message();
    monitor_ = std::move(*monitor);
    auto tree = make_tree(plan_, monitor_, undo_);
    if (tree) {
      EXPECT_TRUE(tree->monitor->finish());
    }
    return tree;
  }
  mode_t mode(const std::string& name) const {
    struct stat found {};
    EXPECT_EQ(::lstat(dir_.file("base/mayfly/vm1/root/" + name).c_str(), &found), 0) << name;
    return found.st_mode;
  }
  std::string refusal() {
    const auto monitor = open_monitor(options_);
    return monitor ? "" : monitor.error().message();
  }

  testing::TempDir dir_;
  Options options_;
  TreePlan plan_;
  UniqueFd monitor_;
  Undo undo_;
};

TEST_F(TreeTest, everything_is_made_with_its_mode_and_goes_again) {
  ::umask(0);
  const auto tree = make();
  ::umask(022);
  ASSERT_TRUE(tree) << tree.error().message();
  EXPECT_EQ(mode("") & 07777U, 0700U);
  EXPECT_EQ(mode("mayfly") & 07777U, 0555U);
  EXPECT_EQ(mode("run") & 07777U, 0700U);
  EXPECT_EQ(mode("dev") & 07777U, 0755U);
  EXPECT_TRUE(S_ISREG(mode("dev/kvm")));
  EXPECT_TRUE(S_ISREG(mode("dev/net/tun")));
  EXPECT_TRUE(write_pid(tree->pid_file, 17));
  std::string pid;
  std::ifstream(dir_.file("base/mayfly/vm1/root/mayfly.pid")) >> pid;
  EXPECT_EQ(pid, "17");
  EXPECT_EQ(fs::file_size(dir_.file("base/mayfly/vm1/root/mayfly")), sizeof(Elf64_Ehdr));
  EXPECT_TRUE(undo_.run().empty());
  EXPECT_FALSE(fs::exists(dir_.file("base")));
}

TEST_F(TreeTest, what_was_prepared_stays_when_all_is_taken_back) {
  fs::create_directories(dir_.file("base/mayfly/vm1/root/run"));
  std::ofstream(dir_.file("base/mayfly/vm1/root/vm.json")) << "{}";
  ASSERT_EQ(::chmod(dir_.file("base/mayfly/vm1/root").c_str(), 0755), 0);
  ASSERT_EQ(::chmod(dir_.file("base/mayfly/vm1/root/run").c_str(), 0711), 0);
  EXPECT_TRUE(check_tree(plan_));
  ASSERT_TRUE(make());
  EXPECT_EQ(mode("run") & 07777U, 0700U);
  EXPECT_TRUE(undo_.run().empty());
  EXPECT_EQ(mode("") & 07777U, 0755U);
  EXPECT_EQ(mode("run") & 07777U, 0711U);
  EXPECT_TRUE(fs::exists(dir_.file("base/mayfly/vm1/root/vm.json")));
  EXPECT_FALSE(fs::exists(dir_.file("base/mayfly/vm1/root/dev")));
}

TEST_F(TreeTest, a_second_jail_of_the_same_id_is_refused_and_changes_nothing) {
  const auto first = make();
  ASSERT_TRUE(first);
  Undo undo;
  auto monitor = open_monitor(options_);
  const auto during = make_tree(plan_, *monitor, undo);
  ASSERT_FALSE(during);
  EXPECT_THAT(during.error().message(), HasSubstr("another jailer is at work"));
  EXPECT_TRUE(undo.run().empty());
  EXPECT_TRUE(fs::exists(dir_.file("base/mayfly/vm1/root/dev/kvm")));
}

TEST_F(TreeTest, whatever_was_prepared_in_the_place_of_the_jails_own_is_refused) {
  const auto root = dir_.file("base/mayfly/vm1/root");
  const auto attempts = {
      std::function<void()>([&] { fs::create_directory(root + "/dev"); }),
      std::function<void()>([&] { fs::create_directory_symlink("/dev", root + "/dev"); }),
      std::function<void()>([&] { std::ofstream(root + "/mayfly") << "x"; }),
      std::function<void()>([&] { fs::create_symlink("/nowhere", root + "/mayfly"); }),
      std::function<void()>([&] { fs::create_hard_link(dir_.file("mayfly"), root + "/mayfly.pid"); }),
      std::function<void()>([&] { ASSERT_EQ(::mkfifo((root + "/mayfly.pid").c_str(), 0600), 0); }),
      std::function<void()>([&] { fs::create_directory_symlink("/tmp", root + "/run"); }),
      std::function<void()>([&] { ASSERT_EQ(::mkfifo((root + "/run").c_str(), 0600), 0); }),
      std::function<void()>([&] {
        fs::remove(root);
        fs::create_directory_symlink("/tmp", root);
      }),
  };
  for (const auto& prepare : attempts) {
    fs::remove_all(dir_.file("base"));
    fs::create_directories(root);
    prepare();
    const auto count = std::distance(fs::recursive_directory_iterator(dir_.file("base")), {});
    EXPECT_FALSE(make());
    EXPECT_TRUE(undo_.run().empty());
    EXPECT_EQ(std::distance(fs::recursive_directory_iterator(dir_.file("base")), {}), count);
  }
}

TEST_F(TreeTest, a_jails_folder_that_others_may_put_files_in_is_refused) {
  fs::create_directories(dir_.file("base/mayfly/vm1/root"));
  ASSERT_EQ(::chmod(dir_.file("base/mayfly/vm1").c_str(), 01777), 0);
  for (const auto& refused : {check_tree(plan_), make().map([](const Tree&) {})}) {
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("vm1: others may put files there"));
  }
  EXPECT_FALSE(fs::exists(dir_.file("base/mayfly/vm1/.jail")));
}

TEST_F(TreeTest, a_record_that_is_none_is_refused_before_anything_is_made) {
  fs::create_directories(dir_.file("base/mayfly/vm1/root"));
  fs::create_hard_link(dir_.file("mayfly"), dir_.file("base/mayfly/vm1/.jail"));
  for (const auto& refused : {check_tree(plan_), make().map([](const Tree&) {})}) {
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("with no other name"));
  }
  EXPECT_GT(fs::file_size(dir_.file("mayfly")), 0U);
}

TEST_F(TreeTest, a_folder_of_jails_that_others_may_change_is_refused) {
  fs::create_directories(dir_.file("base"));
  ASSERT_EQ(::chmod(dir_.file("base").c_str(), 0777), 0);
  const auto tree = make();
  ASSERT_FALSE(tree);
  EXPECT_THAT(tree.error().message(), HasSubstr("--chroot-base-dir"));
  EXPECT_THAT(tree.error().message(), HasSubstr("others may write to it"));
}

TEST_F(TreeTest, a_monitor_that_is_none_is_refused_by_name_and_rule) {
  const auto refuses = [&](const char* rule) {
    EXPECT_THAT(refusal(), HasSubstr("--exec-file \"" + options_.exec_file + "\""));
    EXPECT_THAT(refusal(), HasSubstr(rule));
  };
  ASSERT_EQ(::chmod(dir_.file("mayfly").c_str(), 0644), 0);
  refuses("must be executable");
  ASSERT_EQ(::chmod(dir_.file("mayfly").c_str(), 0757), 0);
  refuses("could change it");
  ASSERT_EQ(::chmod(dir_.file("mayfly").c_str(), 0755), 0);
  options_.rootless = false;
  options_.uid = ::getuid();
  if (::getuid() != 0) {
    refuses("could change it");
  }
  options_.rootless = true;

  options_.exec_file = dir_.file("link");
  fs::create_symlink(dir_.file("mayfly"), options_.exec_file);
  refuses("is a symbolic link");
  options_.exec_file = dir_.file("fifo");
  ASSERT_EQ(::mkfifo(options_.exec_file.c_str(), 0755), 0);
  refuses("regular file");
  options_.exec_file = dir_.file("");
  refuses("regular file");
  options_.exec_file = dir_.file("none");
  refuses("No such file");
  options_.exec_file = dir_.file("script");
  std::ofstream(options_.exec_file) << "#!/bin/sh\n";
  ASSERT_EQ(::chmod(options_.exec_file.c_str(), 0755), 0);
  refuses("static 64-bit ELF program");

  options_.exec_file = dir_.file("mayfly");
  EXPECT_EQ(refusal(), "");
  std::fstream(options_.exec_file).seekp(offsetof(Elf64_Ehdr, e_machine)).put(static_cast<char>(EM_386));
  refuses("static 64-bit ELF program for this machine");
}

}  // namespace
}  // namespace mayfly::jail
