#include "devices/virtio/block/block_device.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/metrics.h"
#include "support/block_rig.h"
#include "support/temp_dir.h"

namespace mayfly::testing {
namespace {

using namespace blk;  // NOLINT(google-build-using-namespace): the specification's names
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr std::uint64_t kSectors = 2048;

class BlockDeviceTest : public ::testing::Test {
 protected:
  BlockDeviceTest() { make_image(kSectors * 512); }

  // Each sector holds its own number in its first two bytes and 0x5a after them.
  void make_image(std::uint64_t bytes, const std::string& name = "disk") {
    std::ofstream file(dir_.file(name), std::ios::binary);
    std::string content(bytes, 'Z');
    for (std::uint64_t sector = 0; sector * 512 + 1 < bytes; ++sector) {
      content[sector * 512] = static_cast<char>(sector);
      content[sector * 512 + 1] = static_cast<char>(sector >> 8);
    }
    file << content;
  }
  static std::vector<std::byte> sectors(std::uint64_t first, std::uint64_t count) {
    std::vector<std::byte> bytes(count * 512, std::byte{'Z'});
    for (std::uint64_t index = 0; index < count; ++index) {
      bytes[index * 512] = static_cast<std::byte>(first + index);
      bytes[index * 512 + 1] = static_cast<std::byte>((first + index) >> 8);
    }
    return bytes;
  }
  std::string on_disk(std::uint64_t sector, std::uint64_t count, const std::string& name = "disk") {
    return read_file(dir_.file(name)).substr(sector * 512, count * 512);
  }
  static std::string text(const std::vector<std::byte>& bytes) {
    std::string text(bytes.size(), '\0');
    std::memcpy(text.data(), bytes.data(), bytes.size());
    return text;
  }

  BlockDeviceConfig config() const {
    BlockDeviceConfig config;
    config.id = "rootfs";
    config.path = dir_.file("disk");
    config.cache_type = BlockCacheType::kWriteback;
    config.discard = true;
    return config;
  }
  void start(const BlockDeviceConfig& config, std::uint64_t features = BlockRig::kAllFeatures) {
    ASSERT_TRUE(rig_.make(config)) << rig_.error;
    rig_.start(features, static_cast<std::uint16_t>(config.queue_count));
  }
  BlockMetrics& counters() { return metrics().block_device("rootfs"); }

  TempDir dir_;
  BlockRig rig_;
};

TEST_F(BlockDeviceTest, read_gives_the_sectors_of_the_image) {
  start(config());
  const auto answer = rig_.in(5, 4096);
  EXPECT_EQ(answer.status, VIRTIO_BLK_S_OK);
  EXPECT_EQ(answer.length, 4097U);
  EXPECT_EQ(answer.data, sectors(5, 8));
}

TEST_F(BlockDeviceTest, write_changes_the_image_and_nothing_else) {
  start(config());
  const std::string before = read_file(dir_.file("disk"));
  EXPECT_EQ(rig_.out(7, filled(1024, 0xc3)), VIRTIO_BLK_S_OK);
  std::string expected = before;
  expected.replace(7 * 512, 1024, 1024, '\xc3');
  EXPECT_TRUE(read_file(dir_.file("disk")) == expected);
  EXPECT_EQ(rig_.in(7, 1024).data, filled(1024, 0xc3));
}

}  // namespace
}  // namespace mayfly::testing
