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

}  // namespace
}  // namespace mayfly
