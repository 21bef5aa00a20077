#include "devices/virtio/block/overlay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>

#include "support/block_rig.h"
#include "support/temp_dir.h"

namespace mayfly::testing {
namespace {

using namespace blk;  // NOLINT(google-build-using-namespace): the specification's names
using ::testing::AllOf;
using ::testing::HasSubstr;

using Kind = IoOperation::Kind;

// Neither a whole number of clusters nor of pages of the bitmap.
constexpr std::uint64_t kSectors = 4099;

class OverlayTest : public ::testing::Test {
 protected:
  OverlayTest() {
    std::string content(kSectors * 512, '\0');
    for (std::size_t index = 0; index < content.size(); ++index) {
      content[index] = static_cast<char>(index % 251 + index / 4096);
    }
    std::ofstream(dir_.file("base"), std::ios::binary) << content;
    base_content_ = content;
  }

  BlockDeviceConfig config(bool in_file = true) const {
    BlockDeviceConfig config;
    config.id = "rootfs";
    config.path = dir_.file("base");
    config.discard = true;
    config.cache_type = BlockCacheType::kWriteback;
    config.overlay.emplace();
    if (in_file) {
      config.overlay->path = dir_.file("overlay");
    }
    return config;
  }
  static std::string error_of(const BlockDeviceConfig& config) {
    BlockRig rig;
    return rig.make(config) ? std::string("no error") : rig.error;
  }
  static std::string text(const std::vector<std::byte>& bytes) {
    std::string text(bytes.size(), '\0');
    std::memcpy(text.data(), bytes.data(), bytes.size());
    return text;
  }
  // All that a drive holds, as its guest sees it.
  static std::string contents(const BlockDeviceConfig& config) {
    BlockRig rig;
    if (!rig.make(config)) {
      return rig.error;
    }
    rig.start();
    std::string all;
    for (std::uint64_t sector = 0; sector < kSectors; sector += 1024) {
      const auto count = std::min<std::uint64_t>(1024, kSectors - sector);
      const auto answer = rig.in(sector, static_cast<std::uint32_t>(count * 512));
      EXPECT_EQ(answer.status, VIRTIO_BLK_S_OK);
      all += text(answer.data);
    }
    return all;
  }
  // The overlay's file as it would be found if the monitor were killed now.
  BlockDeviceConfig after_a_kill(BlockDeviceConfig config) const {
    std::filesystem::copy_file(*config.overlay->path, dir_.file("found"),
                               std::filesystem::copy_options::overwrite_existing);
    config.overlay->path = dir_.file("found");
    return config;
  }

  TempDir dir_;
  std::string base_content_;
};

TEST_F(OverlayTest, fresh_overlay_shows_the_image) {
  EXPECT_TRUE(contents(config()) == base_content_);
  EXPECT_TRUE(contents(config(false)) == base_content_);
}

TEST_F(OverlayTest, image_is_never_written) {
  for (const bool in_file : {true, false}) {
    BlockRig rig;
    ASSERT_TRUE(rig.make(config(in_file))) << rig.error;
    rig.start();
    EXPECT_EQ(rig.device->features() & BlockDevice::kFeatureReadOnly, 0U);
    EXPECT_EQ(rig.out(0, filled(512, 1)), VIRTIO_BLK_S_OK);
    EXPECT_EQ(rig.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(100, 100)), VIRTIO_BLK_S_OK);
    EXPECT_EQ(rig.command(VIRTIO_BLK_T_DISCARD, segment(300, 1000)), VIRTIO_BLK_S_OK);
    EXPECT_EQ(rig.in(0, 512).data, filled(512, 1));
    EXPECT_TRUE(read_file(dir_.file("base")) == base_content_);
  }
}

TEST_F(OverlayTest, drives_share_an_image_that_cannot_be_written_or_updated) {
  BlockRig first;
  BlockRig second;
  ASSERT_TRUE(first.make(config(false)));
  ASSERT_TRUE(second.make(config(true)));
  BlockDeviceConfig writer = config();
  writer.overlay.reset();
  EXPECT_THAT(error_of(writer), HasSubstr("in use"));
  const MutexLock lock(first.device->mutex());
  EXPECT_EQ(first.device->update_backing(dir_.file("base")).error().code(), ErrorCode::kUnsupported);
}

TEST_F(OverlayTest, overlay_in_use_is_refused_to_a_second_drive) {
  BlockRig first;
  ASSERT_TRUE(first.make(config()));
  EXPECT_THAT(error_of(config()), AllOf(HasSubstr("drive rootfs: overlay"), HasSubstr("in use")));
}

// Against a model: random operations, and now and then the drive goes and comes back.
TEST_F(OverlayTest, random_operations_are_as_on_a_plain_disk) {
  for (const bool in_file : {true, false}) {
    std::string model = base_content_;
    std::minstd_rand random(7);
    const auto pick = [&random](std::uint64_t below) { return random() % below; };
    auto rig = std::make_unique<BlockRig>();
    ASSERT_TRUE(rig->make(config(in_file))) << rig->error;
    rig->start();
    for (int step = 0; step < 600; ++step) {
      const std::uint64_t sector = pick(kSectors);
      const std::uint64_t count = std::min(1 + pick(pick(3) == 0 ? 200 : 10), kSectors - sector);
      const std::uint64_t from = sector * 512;
      const std::uint64_t bytes = count * 512;
      switch (pick(5)) {
        case 0:
        case 1: {
          const auto data = filled(bytes, static_cast<unsigned>(pick(256)));
          ASSERT_EQ(rig->out(sector, data), VIRTIO_BLK_S_OK);
          model.replace(from, bytes, text(data));
          break;
        }
        case 2: {
          const auto unmap = static_cast<std::uint32_t>(pick(2));
          ASSERT_EQ(rig->command(VIRTIO_BLK_T_WRITE_ZEROES,
                                 segment(sector, static_cast<std::uint32_t>(count), unmap)),
                    VIRTIO_BLK_S_OK);
          model.replace(from, bytes, bytes, '\0');
          break;
        }
        case 3: {
          ASSERT_EQ(rig->command(VIRTIO_BLK_T_DISCARD, segment(sector, static_cast<std::uint32_t>(count))),
                    VIRTIO_BLK_S_OK);
          // Whole clusters become zeroes, parts of them stay.
          const std::uint64_t first = (from + 4095) / 4096 * 4096;
          const std::uint64_t end =
              from + bytes == model.size() ? model.size() : (from + bytes) / 4096 * 4096;
          if (first < end) {
            model.replace(first, end - first, end - first, '\0');
          }
          break;
        }
        default: {
          const auto answer = rig->in(sector, static_cast<std::uint32_t>(bytes));
          ASSERT_EQ(answer.status, VIRTIO_BLK_S_OK);
          ASSERT_TRUE(text(answer.data) == model.substr(from, bytes)) << "step " << step;
        }
      }
      if (in_file && pick(100) == 0) {
        rig = std::make_unique<BlockRig>();
        ASSERT_TRUE(rig->make(config())) << rig->error;
        rig->start();
      }
    }
    if (in_file) {
      rig.reset();
      EXPECT_TRUE(contents(config()) == model);
    }
  }
  EXPECT_TRUE(read_file(dir_.file("base")) == base_content_);
}

TEST_F(OverlayTest, flushed_writes_survive_a_kill) {
  BlockRig rig;
  ASSERT_TRUE(rig.make(config()));
  rig.start();
  std::string expected = base_content_;
  ASSERT_EQ(rig.out(3, filled(1024, 0xaa)), VIRTIO_BLK_S_OK);
  expected.replace(3 * 512, 1024, 1024, '\xaa');
  ASSERT_EQ(rig.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  ASSERT_EQ(rig.out(800, filled(1024, 0xbb)), VIRTIO_BLK_S_OK);
  const std::string found = contents(after_a_kill(config()));
  EXPECT_TRUE(found.substr(0, 800 * 512) == expected.substr(0, 800 * 512));
  EXPECT_TRUE(found.substr(802 * 512) == expected.substr(802 * 512));
}

TEST_F(OverlayTest, writes_without_a_cache_survive_a_kill) {
  BlockRig rig;
  ASSERT_TRUE(rig.make(config()));
  rig.start();
  rig.driver->write_config_u8(32, 0);
  ASSERT_EQ(rig.out(3, filled(1024, 0xaa)), VIRTIO_BLK_S_OK);
  ASSERT_EQ(rig.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(100, 3)), VIRTIO_BLK_S_OK);
  std::string expected = base_content_;
  expected.replace(3 * 512, 1024, 1024, '\xaa');
  expected.replace(100 * 512, 3 * 512, 3 * 512, '\0');
  EXPECT_TRUE(contents(after_a_kill(config())) == expected);
}

TEST_F(OverlayTest, unsafe_writes_survive_a_kill_of_the_monitor) {
  auto unsafe = config();
  unsafe.cache_type = BlockCacheType::kUnsafe;
  BlockRig rig;
  ASSERT_TRUE(rig.make(unsafe));
  rig.start();
  ASSERT_EQ(rig.out(3, filled(1024, 0xaa)), VIRTIO_BLK_S_OK);
  std::string expected = base_content_;
  expected.replace(3 * 512, 1024, 1024, '\xaa');
  EXPECT_TRUE(contents(after_a_kill(unsafe)) == expected);
}

TEST_F(OverlayTest, file_costs_what_was_written) {
  BlockRig rig;
  ASSERT_TRUE(rig.make(config()));
  rig.start();
  ASSERT_EQ(rig.out(8, filled(4096, 1)), VIRTIO_BLK_S_OK);
  struct stat status {};
  ASSERT_EQ(::stat(dir_.file("overlay").c_str(), &status), 0);
  EXPECT_GT(status.st_size, static_cast<off_t>(kSectors * 512));
  EXPECT_LT(status.st_blocks * 512, 64 * 1024);
}

TEST_F(OverlayTest, what_is_no_overlay_of_this_image_is_refused_and_kept) {
  std::ofstream(dir_.file("overlay")) << std::string(10000, 'x');
  EXPECT_THAT(error_of(config()),
              AllOf(HasSubstr("drive rootfs"), HasSubstr("overlay"), HasSubstr("something else")));
  EXPECT_EQ(read_file(dir_.file("overlay")), std::string(10000, 'x'));
  std::ofstream(dir_.file("overlay")) << "x";
  EXPECT_THAT(error_of(config()), HasSubstr("something else"));

  std::filesystem::remove(dir_.file("overlay"));
  EXPECT_EQ(error_of(config()), "no error");
  const auto whole = std::filesystem::file_size(dir_.file("overlay"));
  std::filesystem::resize_file(dir_.file("overlay"), whole - 4096);
  EXPECT_THAT(error_of(config()), HasSubstr("cut off"));
  std::filesystem::resize_file(dir_.file("overlay"), whole);
  std::filesystem::resize_file(dir_.file("base"), (kSectors + 1) * 512);
  EXPECT_THAT(error_of(config()), HasSubstr("made for an image of"));
  std::fstream(dir_.file("overlay"), std::ios::in | std::ios::out).seekp(8) << '\x09';
  EXPECT_THAT(error_of(config()), HasSubstr("another version"));

  std::filesystem::create_hard_link(dir_.file("base"), dir_.file("link"));
  auto on_itself = config();
  on_itself.overlay->path = dir_.file("link");
  EXPECT_THAT(error_of(on_itself), HasSubstr("is the image"));
}

TEST_F(OverlayTest, making_that_was_cut_short_is_made_up_for) {
  EXPECT_EQ(error_of(config()), "no error");
  std::filesystem::resize_file(dir_.file("overlay"), 4096);
  EXPECT_TRUE(contents(config()) == base_content_);
}

TEST_F(OverlayTest, image_that_shrank_is_an_error_of_the_request) {
  BlockRig rig;
  ASSERT_TRUE(rig.make(config()));
  rig.start();
  std::filesystem::resize_file(dir_.file("base"), 4096);
  EXPECT_EQ(rig.in(64, 512).status, VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig.out(64, filled(512, 1)), VIRTIO_BLK_S_IOERR);  // a part of a cluster
  EXPECT_EQ(rig.out(64, filled(4096, 1)), VIRTIO_BLK_S_OK);    // a whole one
  EXPECT_EQ(rig.in(64, 4096).data, filled(4096, 1));
}

TEST_F(OverlayTest, overlay_that_shrank_does_not_grow_again) {
  BlockRig rig;
  ASSERT_TRUE(rig.make(config()));
  rig.start();
  EXPECT_EQ(rig.out(64, filled(4096, 1)), VIRTIO_BLK_S_OK);
  const auto cut = OverlayEngine::data_offset(kSectors * 512) + 64 * 512;
  std::filesystem::resize_file(dir_.file("overlay"), cut);
  EXPECT_EQ(rig.in(64, 512).status, VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig.out(64, filled(4096, 2)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig.out(65, filled(512, 2)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(128, 8)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig.command(VIRTIO_BLK_T_DISCARD, segment(128, 8)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  EXPECT_EQ(std::filesystem::file_size(dir_.file("overlay")), cut);
  EXPECT_EQ(rig.out(0, filled(4096, 3)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig.in(0, 4096).data, filled(4096, 3));
}

TEST_F(OverlayTest, engine_that_overlays_do_not_have_is_warned_of) {
  for (const auto engine : {BlockEngineType::kSync, BlockEngineType::kAsync}) {
    BlockDeviceConfig with = config();
    with.engine = engine;
    ::testing::internal::CaptureStderr();
    BlockRig rig;
    const bool made = rig.make(with);
    const std::string said = ::testing::internal::GetCapturedStderr();
    ASSERT_TRUE(made) << rig.error;
    EXPECT_EQ(
        said.find("drive rootfs: io_engine Async is for drives without an overlay") != std::string::npos,
        engine == BlockEngineType::kAsync)
        << said;
    rig.start();
    EXPECT_EQ(rig.out(0, filled(512, 1)), VIRTIO_BLK_S_OK);
    EXPECT_EQ(rig.in(0, 512).data, filled(512, 1));
  }
}

// Clusters are taken up, and looked at, by the word: whatever begins and ends within one.
TEST_F(OverlayTest, ranges_of_any_clusters_are_the_overlays_and_no_others) {
  std::minstd_rand random(3);
  std::string expected = base_content_;
  {
    BlockRig rig;
    ASSERT_TRUE(rig.make(config()));
    rig.start();
    for (int round = 0; round < 40; ++round) {
      const std::uint64_t first = random() % 500;
      const std::uint64_t count = 1 + random() % (round < 30 ? 10 : 200);
      const std::uint64_t end = std::min(kSectors, (first + count) * 8);
      const auto range = segment(first * 8, static_cast<std::uint32_t>(end - first * 8));
      const bool discards = random() % 2 == 0;
      ASSERT_EQ(rig.command(discards ? VIRTIO_BLK_T_DISCARD : VIRTIO_BLK_T_WRITE_ZEROES, range),
                VIRTIO_BLK_S_OK);
      expected.replace(first * 4096, end * 512 - first * 4096, end * 512 - first * 4096, '\0');
      ASSERT_TRUE(text(rig.in(0, kSectors * 512).data) == expected) << first << ", " << count;
    }
  }
  EXPECT_TRUE(contents(config()) == expected);
}

TEST_F(OverlayTest, image_that_was_changed_since_is_refused_with_the_way_out) {
  const auto written = std::filesystem::last_write_time(dir_.file("base"));
  {
    BlockRig rig;
    ASSERT_TRUE(rig.make(config())) << rig.error;
    rig.start();
    EXPECT_EQ(rig.out(0, filled(4096, 1)), VIRTIO_BLK_S_OK);
  }
  EXPECT_EQ(error_of(config()), "no error") << "which nobody has changed";
  const std::string overlay = read_file(dir_.file("overlay"));
  // Of the same size, and by the least that a file system can tell.
  for (const auto step : {std::chrono::nanoseconds(1000), std::chrono::nanoseconds(-1'000'000'000)}) {
    std::filesystem::last_write_time(dir_.file("base"), written + step);
    EXPECT_THAT(error_of(config()),
                AllOf(HasSubstr("drive rootfs: overlay " + dir_.file("overlay")),
                      HasSubstr(dir_.file("base") + " was changed since"), HasSubstr("touch -m -d @")));
  }
  EXPECT_EQ(read_file(dir_.file("overlay")), overlay);
  struct stat status {};
  std::filesystem::last_write_time(dir_.file("base"), written);
  ASSERT_EQ(::stat(dir_.file("base").c_str(), &status), 0);
  std::filesystem::last_write_time(dir_.file("base"), written + std::chrono::hours(1));
  std::array<char, 32> time{};
  std::snprintf(time.data(), time.size(), "@%lld.%09ld ", static_cast<long long>(status.st_mtim.tv_sec),
                status.st_mtim.tv_nsec);
  EXPECT_THAT(error_of(config()), HasSubstr(time.data()));
  std::filesystem::last_write_time(dir_.file("base"), written);
  EXPECT_EQ(error_of(config()), "no error") << "once it is as it was";
}

TEST_F(OverlayTest, overlay_that_does_not_know_its_images_time_is_taken_up) {
  EXPECT_EQ(error_of(config()), "no error");
  std::fstream(dir_.file("overlay"), std::ios::in | std::ios::out | std::ios::binary)
      .seekp(offsetof(OverlayEngine::Header, base_changed_ns))
      .write("\0\0\0\0\0\0\0", 8);
  std::filesystem::last_write_time(dir_.file("base"), std::filesystem::file_time_type::clock::now());
  EXPECT_EQ(error_of(config()), "no error");
}

TEST_F(OverlayTest, empty_image_has_an_overlay_of_nothing) {
  std::filesystem::resize_file(dir_.file("base"), 0);
  BlockRig rig;
  ASSERT_TRUE(rig.make(config())) << rig.error;
  rig.start();
  EXPECT_EQ(rig.in(0, 512).status, VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
}

}  // namespace
}  // namespace mayfly::testing
