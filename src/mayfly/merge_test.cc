#include "mayfly/merge.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/unique_fd.h"
#include "support/temp_dir.h"
#include "vmm/diff_mark.h"

namespace mayfly {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kPages = 256;
constexpr std::size_t kShown = 8;            // the first pages
constexpr std::size_t kMarkPlace = 0xdf200;  // docs/snapshot-format.md

using Pages = std::vector<std::pair<std::size_t, char>>;

class MergeTest : public ::testing::Test {
 protected:
  // A file of kPages pages that has only those of `marks`, the page's number and what fills it, and that with
  // the marks of the snapshot `id`, a diff to `base`.
  std::string file(const std::string& name, char id, char base, const Pages& marks) {
    std::string path = folder_.file(name);
    const auto made = open_file(path, O_RDWR | O_CREAT, "test file");
    EXPECT_TRUE(made.has_value());
    EXPECT_EQ(::ftruncate(made->get(), kPages * kPage), 0);
    for (const auto& [page, mark] : marks) {
      write(*made, page * kPage, std::string(kPage, mark));
    }
    write(*made, kMarkPlace, std::string(16, id) + std::string(16, base));
    return path;
  }
  std::string whole(const std::string& name, char id, const Pages& marks) {
    return file(name, id, '\0', marks);
  }
  std::string diff(const std::string& name, char id, char base, const Pages& marks) {
    std::string path = file(name, id, base, marks);
    const auto made = open_file(path, O_RDWR, "test file");
    EXPECT_TRUE(note_diff_pages({*made, path}).has_value());
    return path;
  }
  static void write(const UniqueFd& file, std::size_t offset, const std::string& bytes) {
    EXPECT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
  }
  // What a copy makes of it that knows no holes.
  std::string filled(const std::string& path) {
    const std::string bytes = read(path);
    std::string copy = path + ".filled";
    const auto made = open_file(copy, O_RDWR | O_CREAT, "test file");
    EXPECT_TRUE(made.has_value());
    write(*made, 0, bytes);
    return copy;
  }
  static std::string read(const std::string& path) {
    const auto bytes = mayfly::read_file(path, "test file", kPages * kPage);
    EXPECT_TRUE(bytes.has_value());
    return bytes.value_or("");
  }
  // The first byte of each of the first pages.
  static std::string marks(const std::string& path) {
    const std::string bytes = read(path);
    std::string text;
    for (std::size_t page = 0; page < std::min(kShown, bytes.size() / kPage); ++page) {
      const char mark = bytes[page * kPage];
      text.push_back(mark == '\0' ? '.' : mark);
    }
    return text;
  }
  void expect_refused(const std::string& base, const std::vector<std::string>& diffs,
                      const std::string& blamed, const std::string& why) {
    const std::string before = read(base);
    const auto merged = merge_memory(base, diffs, base);
    ASSERT_FALSE(merged.has_value()) << blamed;
    EXPECT_NE(merged.error().message().find(blamed), std::string::npos) << merged.error().message();
    EXPECT_NE(merged.error().message().find(why), std::string::npos) << merged.error().message();
    EXPECT_EQ(read(base), before);
  }

  testing::TempDir folder_;
};

TEST_F(MergeTest, diffs_lie_over_the_base_in_their_order) {
  const std::string base = whole("base", 'A', {{0, 'a'}, {1, 'a'}, {2, 'a'}});
  const std::string one = diff("one", 'B', 'A', {{1, 'b'}, {2, 'b'}, {5, 'b'}});
  const std::string two = diff("two", 'C', 'B', {{2, 'c'}, {5, '\0'}});
  const std::string output = folder_.file("output");
  const auto merged = merge_memory(base, {one, two}, output);
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_EQ(marks(output), "abc.....");
  EXPECT_EQ(marks(base), "aaa.....");
  // The memory of the last one, and no diff any more.
  EXPECT_EQ(read(output).substr(kMarkPlace, 48), std::string(16, 'C') + std::string(32, '\0'));
}

TEST_F(MergeTest, the_result_may_take_the_place_of_the_base) {
  const std::string base = whole("base", 'A', {{0, 'a'}});
  const auto merged = merge_memory(base, {diff("one", 'B', 'A', {{7, 'b'}})}, base);
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_EQ(marks(base), "a......b");
}

TEST_F(MergeTest, the_result_takes_the_place_of_no_diff) {
  const std::string base = whole("base", 'A', {{0, 'a'}});
  const std::string one = diff("one", 'B', 'A', {{7, 'b'}});
  const std::string before = read(one);
  ASSERT_EQ(::link(one.c_str(), folder_.file("other_name").c_str()), 0);
  for (const std::string& output : {one, folder_.file("other_name")}) {
    const auto merged = merge_memory(base, {one}, output);
    ASSERT_FALSE(merged.has_value()) << output;
    EXPECT_NE(merged.error().message().find(one + ": the result would take its place"), std::string::npos)
        << merged.error().message();
    EXPECT_EQ(read(one), before);
  }
}

TEST_F(MergeTest, diffs_that_are_merged_to_one_are_one) {
  const std::string one = diff("one", 'B', 'A', {{1, 'b'}, {5, 'b'}});
  const auto both = merge_memory(one, {diff("two", 'C', 'B', {{2, 'c'}})}, one);
  ASSERT_TRUE(both.has_value()) << both.error().message();
  const std::string base = whole("base", 'A', {{0, 'a'}, {1, 'a'}, {2, 'a'}});
  expect_refused(base, {filled(one)}, "one.filled", "holes");
  const auto merged = merge_memory(base, {one}, base);
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_EQ(marks(base), "abc..b..");
}

TEST_F(MergeTest, what_does_not_fit_is_named_and_the_base_stays) {
  const std::string base = whole("base", 'A', {{0, 'a'}});
  const std::string one = diff("one", 'B', 'A', {{7, 'b'}});
  const std::string other = diff("other", 'C', 'B', {{1, 'b'}});
  expect_refused(base, {other}, other, "another snapshot");
  ASSERT_EQ(::truncate(other.c_str(), kPage), 0);
  expect_refused(base, {one, other}, other, "");
  expect_refused(base, {folder_.file("none")}, "none", "");
}

// A hole means "as before": zeros in its place would wipe the base out.
TEST_F(MergeTest, a_diff_whose_holes_are_others_than_it_was_written_with_is_refused) {
  const std::string base = whole("base", 'A', {{0, 'a'}, {1, 'a'}});
  const std::string one = diff("one", 'B', 'A', {{1, 'b'}, {2, '\0'}, {3, '\0'}});
  expect_refused(base, {filled(one)}, "one.filled", "256 pages are there, 4 were written");
  expect_refused(filled(one), {diff("next", 'C', 'B', {{4, 'c'}})}, "one.filled", "256 pages");
  const auto punch = [](const std::string& path, std::size_t page) {
    const auto opened = open_file(path, O_RDWR, "test file");
    return ::fallocate(opened->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(page * kPage), kPage);
  };
  // As cp --sparse=always does, which cannot know that zeros are news.
  ASSERT_EQ(punch(one, 2), 0);
  expect_refused(base, {one}, one, "3 pages are there, 4 were written");
  // As many as there were, elsewhere.
  const auto opened = open_file(one, O_RDWR, "test file");
  write(*opened, 5 * kPage, std::string(kPage, '\0'));
  expect_refused(base, {one}, one, "4 pages are there, 4 were written");
}

TEST_F(MergeTest, a_diff_of_an_earlier_version_is_refused_where_it_has_no_hole_at_all) {
  const std::string base = whole("base", 'A', {{0, 'a'}});
  const std::string one = file("one", 'B', 'A', {{1, 'b'}});
  expect_refused(base, {filled(one)}, "one.filled", "has no hole");
  const auto merged = merge_memory(base, {one}, base);
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_EQ(marks(base), "ab......");
}

TEST_F(MergeTest, what_is_no_diff_is_refused) {
  const std::string base = whole("base", 'A', {{0, 'a'}});
  expect_refused(base, {whole("full", 'B', {{1, 'b'}})}, "full", "is no diff");
  expect_refused(base, {file("anything", '\0', '\0', {{1, 'b'}})}, "anything", "is no diff");
}

// All of memory, of a microVM of which nothing was saved before: it goes onto anything.
TEST_F(MergeTest, a_diff_to_nothing_is_all_of_memory) {
  Pages all;
  for (std::size_t page = 0; page < kPages; ++page) {
    all.emplace_back(page, page == 3 ? 'b' : '\0');
  }
  const std::string base = whole("base", 'A', {{0, 'a'}});
  const auto merged = merge_memory(base, {diff("one", 'B', '\0', all)}, base);
  ASSERT_TRUE(merged.has_value()) << merged.error().message();
  EXPECT_EQ(marks(base), "...b....");
}

}  // namespace
}  // namespace mayfly
