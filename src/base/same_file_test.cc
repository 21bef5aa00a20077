#include "base/same_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

TEST(SameFile, one_file_is_found_by_whatever_path) {
  const testing::TempDir dir;
  for (const char* name : {"one", "two"}) {
    std::ofstream(dir.file(name)) << name;
  }
  std::filesystem::create_symlink(dir.file("one"), dir.file("link"));
  std::filesystem::create_hard_link(dir.file("one"), dir.file("hard"));
  EXPECT_TRUE(same_file(dir.file("one"), dir.file("one")));
  EXPECT_TRUE(same_file(dir.file("link"), dir.file("one")));
  EXPECT_TRUE(same_file(dir.file("hard"), dir.file("link")));
  EXPECT_FALSE(same_file(dir.file("one"), dir.file("two")));
  EXPECT_FALSE(same_file(dir.file("one"), dir.file("none")));
  EXPECT_FALSE(same_file("/dev/null", "/dev/null")) << "what is written there is nobody's loss";
}

TEST(SameFile, a_file_that_is_not_there_yet_is_where_it_would_be_made) {
  const testing::TempDir dir;
  std::filesystem::create_symlink(dir.file("new"), dir.file("link"));
  EXPECT_TRUE(same_file(dir.file("new"), dir.file("new")));
  EXPECT_TRUE(same_file(dir.file("link"), dir.file("new")));
  EXPECT_FALSE(same_file(dir.file("new"), dir.file("other")));
  EXPECT_FALSE(same_file(dir.file("no/folder"), dir.file("no/folder")));
}

TEST(SameFile, a_block_device_is_one_whatever_its_nodes) {
  struct stat node {};
  node.st_dev = 5;
  node.st_ino = 100;
  node.st_mode = S_IFBLK | 0600;
  node.st_rdev = 0x801;
  struct stat another = node;
  another.st_dev = 6;
  another.st_ino = 7;
  EXPECT_TRUE(same_file(node, another));
  another.st_rdev = 0x802;
  EXPECT_FALSE(same_file(node, another));
  struct stat terminal = node;  // the numbers of character devices are others
  terminal.st_mode = S_IFCHR | 0600;
  EXPECT_FALSE(same_file(node, terminal));
  EXPECT_FALSE(same_file(terminal, terminal));
}

}  // namespace
}  // namespace mayfly
