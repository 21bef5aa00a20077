#include "base/file.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <fstream>
#include <string>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

TEST(File, is_read_whole_up_to_the_limit) {
  const testing::TempDir dir;
  const std::string large(100'000, 'x');
  std::ofstream(dir.file("large")) << large;
  EXPECT_EQ(read_file(dir.file("large"), "note", 100'000).value(), large);
  EXPECT_EQ(read_file("/dev/null", "note", 0).value(), "");
}

TEST(File, over_the_limit_is_refused_by_name) {
  const testing::TempDir dir;
  const std::string path = dir.file("note");
  std::ofstream(path) << "123456";
  const auto text = read_file(path, "note", 5);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code(), ErrorCode::kOutOfRange);
  EXPECT_EQ(text.error().message(), "note " + path + ": larger than 5 bytes");
  EXPECT_FALSE(read_file("/dev/zero", "note", 5));
}

TEST(File, errors_name_the_role_and_the_path) {
  EXPECT_EQ(read_file("/nonexistent/x", "note", 5).error().os_errno(), ENOENT);
  EXPECT_EQ(read_file("/", "note", 5).error().message(), "read note /: Is a directory (EISDIR)");
}

}  // namespace
}  // namespace mayfly
