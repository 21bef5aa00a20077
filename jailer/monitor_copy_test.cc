#include "monitor_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "support/temp_dir.h"

namespace mayfly::jail {
namespace {

using ::testing::HasSubstr;

UniqueFd open(const std::string& path, int flags) {
  return UniqueFd(::open(path.c_str(), flags | O_CLOEXEC, 0600));
}

TEST(MonitorCopy, the_copy_is_whole_once_it_is_finished) {
  const testing::TempDir dir;
  std::string text(3'000'001, 'x');
  text.back() = 'y';
  std::ofstream(dir.file("from")) << text;
  const UniqueFd from = open(dir.file("from"), O_RDONLY);
  auto copy = MonitorCopy::start(from, open(dir.file("to"), O_WRONLY | O_CREAT), "it");
  ASSERT_TRUE(copy);
  ASSERT_TRUE((*copy)->finish());
  EXPECT_EQ(testing::read_file(dir.file("to")), text);
  EXPECT_TRUE((*copy)->finish()) << "there is nothing left to wait for";
}

TEST(MonitorCopy, a_copy_that_fails_says_what_it_was_of) {
  const testing::TempDir dir;
  std::ofstream(dir.file("from")) << "text";
  const UniqueFd from = open(dir.file("from"), O_RDONLY);
  auto copy = MonitorCopy::start(from, open(dir.file("from"), O_RDONLY), "the monitor");
  ASSERT_TRUE(copy);
  const auto finished = (*copy)->finish();
  ASSERT_FALSE(finished);
  EXPECT_THAT(finished.error().message(), HasSubstr("copy the monitor: "));
}

TEST(MonitorCopy, it_is_waited_for_by_its_end) {
  const testing::TempDir dir;
  std::ofstream(dir.file("from")) << "text";
  const UniqueFd from = open(dir.file("from"), O_RDONLY);
  EXPECT_TRUE(MonitorCopy::start(from, open(dir.file("to"), O_WRONLY | O_CREAT), "it"));
  EXPECT_EQ(testing::read_file(dir.file("to")), "text");
}

}  // namespace
}  // namespace mayfly::jail
