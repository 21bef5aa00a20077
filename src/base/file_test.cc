#include "base/file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace mayfly {
namespace {

class FileTest : public ::testing::Test {
 protected:
  ~FileTest() override { ::unlink(path_.c_str()); }
  const std::string path_ = ::testing::TempDir() + "/mayfly_file_test." + std::to_string(::getpid());
};

TEST_F(FileTest, what_is_written_is_read_and_replaced) {
  const std::string large(100'000, 'x');
  ASSERT_TRUE(write_file(path_, "note", large));
  EXPECT_EQ(read_file(path_, "note", 100'000).value(), large);
  ASSERT_TRUE(write_file(path_, "note", "short"));
  EXPECT_EQ(read_file(path_, "note", 5).value(), "short");
}

TEST_F(FileTest, a_file_over_the_limit_is_refused_by_name) {
  ASSERT_TRUE(write_file(path_, "note", "123456"));
  const auto text = read_file(path_, "note", 5);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code(), ErrorCode::kOutOfRange);
  EXPECT_EQ(text.error().message(), "note " + path_ + ": larger than 5 bytes");
  EXPECT_FALSE(read_file("/dev/zero", "note", 5));
}

TEST_F(FileTest, errors_name_the_role_and_the_path) {
  EXPECT_EQ(read_file("/nonexistent/x", "note", 5).error().os_errno(), ENOENT);
  EXPECT_EQ(read_file("/", "note", 5).error().message(), "read note /: Is a directory (EISDIR)");
  EXPECT_EQ(write_file("/", "note", "x").error().message(), "open note /: Is a directory (EISDIR)");
  EXPECT_EQ(write_file("/dev/full", "note", "x").error().os_errno(), ENOSPC);
}

}  // namespace
}  // namespace mayfly
