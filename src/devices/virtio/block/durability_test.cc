// What a completed FLUSH is worth: that the host's kernel was asked to put the image on stable storage, and
// agreed, before the driver was answered. (That it keeps its word no test can see short of cutting the
// power.)
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <utility>

#include "base/metrics.h"
#include "devices/virtio/block/sync_engine.h"
#include "devices/virtio/block/uring_engine.h"
#include "support/block_rig.h"
#include "support/temp_dir.h"

namespace mayfly::testing {
namespace {

// What is to become of a call; an errno, or 0: the kernel decides.
std::function<int(int fd)> g_on_fdatasync;

}  // namespace
}  // namespace mayfly::testing

// In the place of the C library's, for this program.
extern "C" int fdatasync(int fd) {
  if (mayfly::testing::g_on_fdatasync) {
    if (const int refused = mayfly::testing::g_on_fdatasync(fd); refused != 0) {
      errno = refused;
      return -1;
    }
  }
  return static_cast<int>(::syscall(SYS_fdatasync, fd));
}

namespace mayfly::testing {
namespace {

using namespace blk;  // NOLINT(google-build-using-namespace): the specification's names
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::SizeIs;

class DurabilityTest : public ::testing::Test {
 protected:
  DurabilityTest() {
    std::ofstream(dir_.file("disk")) << std::string(kBytes, 'Z');
    g_on_fdatasync = [this](int fd) {
      struct stat status {};
      ::fstat(fd, &status);
      calls_.push_back({status.st_ino, rig_.rings.empty() ? 0U : rig_.rings[0]->used_index()});
      return refuse_with_;
    };
  }
  ~DurabilityTest() override { g_on_fdatasync = nullptr; }

  void start(BlockCacheType cache, bool overlay = false) {
    BlockDeviceConfig config;
    config.id = "durable";
    config.path = dir_.file("disk");
    config.cache_type = cache;
    if (overlay) {
      config.overlay = BlockOverlayConfig{dir_.file("overlay")};
    }
    ASSERT_TRUE(rig_.make(config)) << rig_.error;
    rig_.start();
    calls_.clear();
  }
  ino_t inode_of(const std::string& name) const {
    struct stat status {};
    ::stat(dir_.file(name).c_str(), &status);
    return status.st_ino;
  }

  static constexpr std::size_t kBytes = 1U << 20;
  struct Call {
    ino_t inode;
    unsigned used_index;  // what the driver had been answered by then
  };

  TempDir dir_;
  BlockRig rig_;
  std::vector<Call> calls_;
  int refuse_with_ = 0;
};

TEST_F(DurabilityTest, each_flush_is_one_fdatasync_of_the_image_before_its_answer) {
  start(BlockCacheType::kWriteback);
  EXPECT_EQ(rig_.out(0, filled(4096, 1)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.out(8, filled(4096, 1)), VIRTIO_BLK_S_OK);
  EXPECT_THAT(calls_, SizeIs(0)) << "a write alone is not made stable";
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  ASSERT_THAT(calls_, SizeIs(1));
  EXPECT_EQ(calls_[0].inode, inode_of("disk"));
  EXPECT_EQ(calls_[0].used_index, 2U);

  for (int count = 0; count < 5; ++count) {
    rig_.rings[0]->chain().readable(header(VIRTIO_BLK_T_FLUSH, 0)).writable(1).submit();
  }
  EXPECT_THAT(rig_.collect(), Each(Field(&BlockRig::Answer::status, VIRTIO_BLK_S_OK)));
  EXPECT_THAT(calls_, SizeIs(6));
  EXPECT_THAT(calls_, Each(Field(&Call::used_index, ::testing::Lt(8U))));
}

TEST_F(DurabilityTest, flush_that_the_host_fails_at_is_an_error_of_the_guests) {
  start(BlockCacheType::kWriteback);
  const auto failed = metrics().block_device("durable").execute_fails.value();
  const auto flushed = metrics().block_device("durable").flush_count.value();
  refuse_with_ = EIO;
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_IOERR);
  refuse_with_ = ENOSPC;
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(metrics().block_device("durable").execute_fails.value(), failed + 2);
  EXPECT_EQ(metrics().block_device("durable").flush_count.value(), flushed);
  EXPECT_THAT(calls_, SizeIs(2));
  refuse_with_ = 0;
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
}

TEST_F(DurabilityTest, interrupted_flush_is_asked_for_again) {
  start(BlockCacheType::kWriteback);
  g_on_fdatasync = [this](int) { return std::exchange(refuse_with_, 0); };
  refuse_with_ = EINTR;
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  EXPECT_EQ(refuse_with_, 0);
}

TEST_F(DurabilityTest, unsafe_drive_asks_the_host_for_nothing) {
  start(BlockCacheType::kUnsafe);
  EXPECT_EQ(rig_.out(0, filled(4096, 1)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  EXPECT_THAT(calls_, SizeIs(0));
}

// The data first, and then the bitmap that tells of them.
TEST_F(DurabilityTest, flush_of_an_overlay_is_one_of_its_data_and_one_of_a_new_bitmap) {
  start(BlockCacheType::kWriteback, true);
  EXPECT_EQ(rig_.out(0, filled(4096, 1)), VIRTIO_BLK_S_OK);
  std::string bitmap_at_first;
  const auto count = std::exchange(g_on_fdatasync, nullptr);
  g_on_fdatasync = [&](int fd) {
    if (calls_.empty()) {
      bitmap_at_first = read_file(dir_.file("overlay")).substr(4096, 1);
    }
    return count(fd);
  };
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  EXPECT_EQ(bitmap_at_first, std::string(1, '\0'));
  EXPECT_EQ(read_file(dir_.file("overlay")).substr(4096, 1), "\1");
  EXPECT_THAT(calls_, ElementsAre(Field(&Call::inode, inode_of("overlay")),
                                  Field(&Call::inode, inode_of("overlay"))));
  EXPECT_EQ(rig_.out(0, filled(4096, 2)), VIRTIO_BLK_S_OK);  // no cluster that the bitmap does not have
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  EXPECT_THAT(calls_, SizeIs(3));
}

// io_uring's cannot be counted from outside the kernel, but what is no file at all tells of it: it cannot be
// put on stable storage, and only the kernel says so.
TEST(Durability, either_engine_has_a_flush_done_by_the_kernel) {
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  const UniqueFd reader(pipe[0]);
  const UniqueFd writer(pipe[1]);
  IoOperation flush;
  flush.kind = IoOperation::Kind::kFlush;
  SyncEngine sync(writer.get());
  EXPECT_EQ(sync.submit(0, flush).value().os_errno, EINVAL);
  auto uring = UringEngine::create(writer.get(), 8);
  if (!uring) {
    GTEST_SKIP() << "the host refuses io_uring: " << uring.error().message();
  }
  // More than once: a completion is of one operation each.
  for (const std::uint32_t token : {0U, 1U}) {
    EXPECT_FALSE((*uring)->submit(token, flush));
  }
  (*uring)->drain();
  for (int count = 0; count < 2; ++count) {
    const auto completion = (*uring)->reap();
    ASSERT_TRUE(completion);
    EXPECT_EQ(completion->result.os_errno, EINVAL);
  }
  EXPECT_FALSE((*uring)->reap());
}

}  // namespace
}  // namespace mayfly::testing
