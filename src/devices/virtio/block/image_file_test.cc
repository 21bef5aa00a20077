#include "devices/virtio/block/image_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "support/temp_dir.h"

namespace mayfly::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr DiskImage::Options kReader{.access = ImageAccess::kRead};
constexpr DiskImage::Options kWriter{.access = ImageAccess::kReadAndWrite};

class ImageFileTest : public ::testing::Test {
 protected:
  ImageFileTest() { std::ofstream(path_) << std::string(1300, 'x'); }

  static std::string error_of(const Result<DiskImage>& result) {
    return result ? std::string("no error") : result.error().message();
  }

  TempDir dir_;
  std::string path_ = dir_.file("disk");
};

TEST_F(ImageFileTest, size_is_counted_in_whole_sectors) {
  const auto image = DiskImage::open("drive a", path_, kReader);
  ASSERT_TRUE(image) << error_of(image);
  EXPECT_EQ(image->size(), 1300U);
  EXPECT_EQ(image->sectors(), 2U);
}

TEST_F(ImageFileTest, owner_keeps_no_times_of_access_and_waits_for_transfers) {
  const auto image = DiskImage::open("drive a", path_, kReader);
  ASSERT_TRUE(image) << error_of(image);
  EXPECT_EQ(::fcntl(image->fd(), F_GETFL) & (O_NOATIME | O_NONBLOCK), O_NOATIME);
}

TEST_F(ImageFileTest, writer_excludes_everybody) {
  const auto writer = DiskImage::open("drive a", path_, kWriter);
  ASSERT_TRUE(writer) << error_of(writer);
  const auto second = DiskImage::open("drive b", path_, kWriter);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), ErrorCode::kBusy);
  EXPECT_THAT(error_of(second),
              AllOf(HasSubstr("drive b"), HasSubstr(path_), HasSubstr("in use"), HasSubstr("lock off")));
  EXPECT_EQ(DiskImage::open("drive b", path_, kReader).error().code(), ErrorCode::kBusy);
}

TEST_F(ImageFileTest, readers_share_and_exclude_writers) {
  const auto first = DiskImage::open("drive a", path_, kReader);
  const auto second = DiskImage::open("drive b", path_, kReader);
  ASSERT_TRUE(first) << error_of(first);
  ASSERT_TRUE(second) << error_of(second);
  EXPECT_FALSE(DiskImage::open("drive c", path_, kWriter));
}

TEST_F(ImageFileTest, lock_ends_with_its_owner_and_can_be_left_out) {
  {
    const auto writer = DiskImage::open("drive a", path_, kWriter);
    DiskImage::Options unlocked = kWriter;
    unlocked.lock = false;
    EXPECT_TRUE(DiskImage::open("drive b", path_, unlocked));
  }
  EXPECT_TRUE(DiskImage::open("drive b", path_, kWriter));
}

TEST_F(ImageFileTest, lock_ends_with_its_owner_though_others_keep_the_file_open) {
  std::optional<DiskImage> writer(std::move(*DiskImage::open("drive a", path_, kWriter)));
  const UniqueFd kept(::dup(writer->fd()));
  writer.reset();
  EXPECT_TRUE(DiskImage::open("drive b", path_, kWriter));
  std::ofstream(dir_.file("other")) << "x";
  auto changing = DiskImage::open("drive c", path_, kWriter);
  ASSERT_TRUE(changing);
  const UniqueFd kept_too(::dup(changing->fd()));
  *changing = std::move(*DiskImage::open("drive c", dir_.file("other"), kWriter));
  EXPECT_TRUE(DiskImage::open("drive b", path_, kWriter));
  EXPECT_FALSE(DiskImage::open("drive b", dir_.file("other"), kWriter));
}

TEST_F(ImageFileTest, what_is_no_image_is_refused_at_once) {
  EXPECT_THAT(error_of(DiskImage::open("drive a", dir_.file("none"), kReader)),
              AllOf(HasSubstr("drive a"), HasSubstr("none"), HasSubstr("ENOENT")));
  EXPECT_THAT(error_of(DiskImage::open("drive a", dir_.fifo("fifo"), kReader)), HasSubstr("neither"));
  EXPECT_THAT(error_of(DiskImage::open("drive a", dir_.file(""), kReader)), HasSubstr("neither"));
  EXPECT_THAT(error_of(DiskImage::open("drive a", "/dev/null", kWriter)), HasSubstr("neither"));
}

TEST_F(ImageFileTest, file_that_may_not_be_written_says_what_to_do) {
  if (::geteuid() == 0) {
    GTEST_SKIP() << "root may write any file";
  }
  std::filesystem::permissions(path_, std::filesystem::perms::owner_read);
  EXPECT_THAT(error_of(DiskImage::open("drive a", path_, kWriter)), HasSubstr("read-only"));
}

TEST_F(ImageFileTest, file_is_known_by_any_of_its_names) {
  const auto image = DiskImage::open("drive a", path_, kWriter);
  std::filesystem::create_hard_link(path_, dir_.file("name"));
  std::ofstream(dir_.file("other")) << "other";
  EXPECT_TRUE(image->is_at(path_));
  EXPECT_TRUE(image->is_at(dir_.file("name")));
  EXPECT_FALSE(image->is_at(dir_.file("other")));
  EXPECT_FALSE(image->is_at(dir_.file("none")));
}

}  // namespace
}  // namespace mayfly::testing
