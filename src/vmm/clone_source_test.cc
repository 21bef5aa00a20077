#include "vmm/clone_source.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "base/file.h"
#include "base/unique_fd.h"
#include "support/temp_dir.h"
#include "vmm/diff_mark.h"

namespace mayfly {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kSize = 256 * kPage;
constexpr std::uint64_t kMarksPage = 0xdf000;  // docs/snapshot-format.md

// A whole microVM is cloned by tests/integration/clone_test.py.
class SavedMemoryTest : public ::testing::Test {
 protected:
  // Memory that has `pages` from the first on and its marks' page, all other pages are holes.
  SavedMemoryTest() {
    const auto made = open_file(path_, O_RDWR | O_CREAT, "test file");
    EXPECT_TRUE(made.has_value());
    EXPECT_EQ(::ftruncate(made->get(), kSize), 0);
    put(0, std::string(kPage, 'a'));
    put(kMarksPage, std::string(kPage, '\0'));
    state_.memory = {{.address = 0, .size = kSize}};
  }

  void put(std::uint64_t offset, const std::string& bytes) const {
    const auto file = open_file(path_, O_RDWR, "test file");
    EXPECT_EQ(::pwrite(file->get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
  }
  void note_pages() const {
    const auto file = open_file(path_, O_RDWR, "test file");
    EXPECT_TRUE(note_diff_pages({*file, path_}).has_value());
  }
  // "" or why not.
  std::string load() const {
    auto file = open_file(path_, O_RDONLY, "test file");
    const auto loaded = load_saved_memory(state_, HugePages::kNone, std::move(*file), path_, "state");
    return loaded ? "" : loaded.error().message();
  }

  const testing::TempDir folder_;
  const std::string path_ = folder_.file("memory");
  MicroVmState state_;
};

TEST_F(SavedMemoryTest, memory_that_says_nothing_of_itself_is_whole) {
  EXPECT_EQ(load(), "");
}

TEST_F(SavedMemoryTest, a_diff_is_refused_with_the_way_whether_or_not_what_it_goes_onto_has_a_mark) {
  note_pages();
  EXPECT_NE(load().find("(Diff): mayfly merge makes it whole"), std::string::npos) << load();
  put(kMarksPage + kSnapshotBaseOffset, std::string(16, 'b') + std::string(16, '\0'));
  EXPECT_NE(load().find("(Diff): mayfly merge makes it whole"), std::string::npos) << load();
}

TEST_F(SavedMemoryTest, a_diff_that_has_all_pages_is_whole) {
  for (std::uint64_t page = 0; page < kSize; page += kPage) {
    put(page, std::string(1, '\0'));
  }
  note_pages();
  EXPECT_EQ(load(), "");
}

}  // namespace
}  // namespace mayfly
