#include "mayfly/merge.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <string>

#include "base/file.h"
#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kPages = 8;

class MergeTest : public ::testing::Test {
 protected:
  // A file of kPages pages that has only those of `marks`: the page's number and what fills it.
  std::string file(const std::string& name, const std::vector<std::pair<std::size_t, char>>& marks) {
    std::string path = folder_.file(name);
    const auto made = open_file(path, O_RDWR | O_CREAT, "test file");
    EXPECT_TRUE(made.has_value());
    EXPECT_EQ(::ftruncate(made->get(), kPages * kPage), 0);
    for (const auto& [page, mark] : marks) {
      const std::string bytes(kPage, mark);
      EXPECT_EQ(::pwrite(made->get(), bytes.data(), kPage, static_cast<off_t>(page * kPage)),
                static_cast<ssize_t>(kPage));
    }
    return path;
  }
  // The first byte of each page.
  static std::string marks(const std::string& path) {
    const auto bytes = mayfly::read_file(path, "test file", kPages * kPage);
    EXPECT_TRUE(bytes.has_value());
    std::string text;
    for (std::size_t page = 0; bytes && page < bytes->size() / kPage; ++page) {
      const char mark = (*bytes)[page * kPage];
      text.push_back(mark == '\0' ? '.' : mark);
    }
    return text;
  }

  testing::TempDir folder_;
};

TEST_F(MergeTest, diffs_lie_over_the_base_in_their_order) {
  const std::string base = file("base", {{0, 'a'}, {1, 'a'}, {2, 'a'}});
  const std::string one = file("one", {{1, 'b'}, {2, 'b'}, {5, 'b'}});
  const std::string two = file("two", {{2, 'c'}});
  const std::string output = folder_.file("output");
  const auto merged = merge_memory(base, {one, two}, output);
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_EQ(marks(output), "abc..b..");
  EXPECT_EQ(marks(base), "aaa.....");
}

TEST_F(MergeTest, the_result_may_take_the_place_of_the_base) {
  const std::string base = file("base", {{0, 'a'}});
  const auto merged = merge_memory(base, {file("one", {{7, 'b'}})}, base);
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_EQ(marks(base), "a......b");
}

TEST_F(MergeTest, what_does_not_fit_is_named_and_the_base_stays) {
  const std::string base = file("base", {{0, 'a'}});
  const std::string other = file("other", {{1, 'b'}});
  ASSERT_EQ(::truncate(other.c_str(), kPage), 0);
  const auto merged = merge_memory(base, {file("one", {{7, 'b'}}), other}, base);
  ASSERT_FALSE(merged.has_value());
  EXPECT_NE(merged.error().message().find(other), std::string::npos) << merged.error().message();
  EXPECT_EQ(marks(base), "a.......");
  const auto missing = merge_memory(base, {folder_.file("none")}, base);
  ASSERT_FALSE(missing.has_value());
  EXPECT_NE(missing.error().message().find("none"), std::string::npos);
}

}  // namespace
}  // namespace mayfly
