#include "mayfly/clone_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

using testing::read_file;
using testing::TempDir;

TEST(CloneFiles, one_that_was_made_is_removed) {
  const TempDir dir;
  const auto made = make_output(7, dir.file("a"));
  ASSERT_TRUE(made.has_value());
  EXPECT_EQ(made->index, 7U);
  std::ofstream(dir.file("a")) << "written to since";
  EXPECT_TRUE(remove_files({{dir.file("a"), *made}}));
  EXPECT_FALSE(std::filesystem::exists(dir.file("a")));
  EXPECT_TRUE(remove_files({{dir.file("a"), *made}})) << "somebody else may have been faster";
}

TEST(CloneFiles, one_that_was_there_before_is_not_made_and_keeps_its_contents) {
  const TempDir dir;
  std::ofstream(dir.file("a")) << "mine";
  EXPECT_FALSE(make_output(0, dir.file("a")).has_value());
  EXPECT_FALSE(make_output(0, dir.file("none/a")).has_value());
  EXPECT_EQ(read_file(dir.file("a")), "mine");
}

TEST(CloneFiles, another_of_the_same_name_stays) {
  const TempDir dir;
  const auto made = make_output(0, dir.file("a"));
  ASSERT_TRUE(made.has_value());
  std::ofstream(dir.file("b")) << "another";
  std::filesystem::rename(dir.file("a"), dir.file("kept"));
  std::filesystem::rename(dir.file("b"), dir.file("a"));
  EXPECT_TRUE(remove_files({{dir.file("a"), *made}}));
  EXPECT_EQ(read_file(dir.file("a")), "another");
}

TEST(CloneFiles, one_that_cannot_be_removed_is_told_and_the_others_go) {
  const TempDir dir;
  const auto made = make_output(0, dir.file("b"));
  ASSERT_TRUE(made.has_value());
  // A folder, which nobody unlinks.
  std::filesystem::create_directory(dir.file("a"));
  struct stat folder {};
  ASSERT_EQ(::stat(dir.file("a").c_str(), &folder), 0);
  EXPECT_FALSE(remove_files({{dir.file("a"), {.index = 0, .device = folder.st_dev, .inode = folder.st_ino}},
                             {dir.file("b"), *made}}));
  EXPECT_FALSE(std::filesystem::exists(dir.file("b")));
}

}  // namespace
}  // namespace mayfly
