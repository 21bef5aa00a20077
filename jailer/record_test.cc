#include "record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "support/temp_dir.h"

namespace mayfly::jail {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RecordOfAJail : public ::testing::Test {
 protected:
  UniqueFd folder() const {
    return UniqueFd(::open(dir_.file(".").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  std::string path() const { return dir_.file("."); }
  testing::TempDir dir_;
};

TEST_F(RecordOfAJail, what_was_written_is_read) {
  {
    const auto file = lock_record(folder(), path());
    ASSERT_TRUE(file && *file);
    EXPECT_TRUE((*file)->is_new);
    EXPECT_THAT(read_record(**file, path())->cgroups, IsEmpty());
    ASSERT_TRUE(write_record(**file, {.user = 7, .cgroups = {"/old", "/more"}}, path()));
    ASSERT_TRUE(write_record(**file, {.user = 1000, .cgroups = {"/a b/vm1"}}, path()));
  }
  const auto file = lock_record(folder(), path());
  ASSERT_TRUE(file && *file);
  EXPECT_FALSE((*file)->is_new);
  const auto record = read_record(**file, path());
  ASSERT_TRUE(record);
  EXPECT_EQ(record->user, 1000U);
  EXPECT_THAT(record->cgroups, ElementsAre("/a b/vm1"));
}

TEST_F(RecordOfAJail, others_cannot_open_it_and_so_not_lock_it) {
  ASSERT_TRUE(lock_record(folder(), path()));
  EXPECT_EQ(fs::status(dir_.file(kRecordName)).permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(RecordOfAJail, one_at_a_time_has_the_lock) {
  const auto first = lock_record(folder(), path());
  const auto second = lock_record(folder(), path());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), ErrorCode::kBusy);
  EXPECT_TRUE(fs::exists(dir_.file(kRecordName)));
}

TEST_F(RecordOfAJail, what_is_none_is_refused) {
  for (const char* const text :
       {"x", "jail 1", "jail 2\n", "jail 1\nuser x\n", "jail 1\ncgroup relative\n",
        "jail 1\ncgroup /a/../../b\n", "jail 1\ncgroup /a/..\n", "jail 1\ncgroup /..\n",
        "jail 1\ncgroup /a/./b\n", "jail 1\ncgroup /a/.\n", "jail 1\nother\n", "jail 1\nuser 1"}) {
    std::ofstream(dir_.file(kRecordName)) << text;
    const auto file = lock_record(folder(), path());
    ASSERT_TRUE(file && *file);
    const auto record = read_record(**file, path());
    ASSERT_FALSE(record) << text;
    EXPECT_THAT(record.error().message(), HasSubstr("is no record of a jail"));
  }
}

TEST_F(RecordOfAJail, what_leads_to_another_file_is_refused_and_not_written_to) {
  EXPECT_TRUE(check_record(folder(), path())) << "there is none";
  std::ofstream(dir_.file("other")) << "kept";
  fs::create_hard_link(dir_.file("other"), dir_.file(kRecordName));
  EXPECT_FALSE(check_record(folder(), path()));
  const auto linked = lock_record(folder(), path());
  ASSERT_FALSE(linked);
  EXPECT_THAT(linked.error().message(), HasSubstr("with no other name"));
  EXPECT_TRUE(fs::exists(dir_.file(kRecordName)));
  fs::remove(dir_.file(kRecordName));
  fs::create_symlink("/dev/null", dir_.file(kRecordName));
  EXPECT_FALSE(check_record(folder(), path()));
  EXPECT_FALSE(lock_record(folder(), path()));
}

TEST_F(RecordOfAJail, a_name_of_dots_is_a_name) {
  std::ofstream(dir_.file(kRecordName)) << "jail 1\ncgroup /a/.../..b/c..\n";
  const auto file = lock_record(folder(), path());
  ASSERT_TRUE(file && *file);
  EXPECT_TRUE(read_record(**file, path()));
}

}  // namespace
}  // namespace mayfly::jail
