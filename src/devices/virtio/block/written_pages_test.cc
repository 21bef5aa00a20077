// All that a block device brings into guest memory is noted, for snapshots: every page whose bytes changed
// while the device worked must be in the record, whatever became of the request.
#include "support/written_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/block/uring_engine.h"
#include "support/block_rig.h"
#include "support/temp_dir.h"

namespace mayfly::testing {
namespace {

using namespace blk;  // NOLINT(google-build-using-namespace): operator+ among them
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr std::uint64_t kSectors = 4096;

enum class Drive : std::uint8_t { kSync, kAsync, kOverlay };

// Its operations are under way until drain(), which ends them as a kernel does that is told to cancel: a read
// has written half of its bytes by then.
class LateEngine final : public IoEngine {
 public:
  std::optional<IoResult> submit(std::uint32_t token, const IoOperation& operation) override {
    under_way_.push_back({token, operation});
    return std::nullopt;
  }
  bool kick() override { return true; }
  std::optional<IoCompletion> reap() override {
    if (over_.empty()) {
      return std::nullopt;
    }
    const std::uint32_t token = over_.front();
    over_.pop_front();
    return IoCompletion{token, {ECANCELED}};
  }
  void drain() override {
    for (const auto& [token, operation] : under_way_) {
      std::uint64_t left = operation.kind == IoOperation::Kind::kRead ? operation.length / 2 : 0;
      for (const iovec& piece : operation.buffers) {
        const std::size_t here = std::min<std::uint64_t>(left, piece.iov_len);
        std::memset(piece.iov_base, 0x99, here);
        left -= here;
      }
      over_.push_back(token);
    }
    under_way_.clear();
  }
  int completion_fd() const override { return -1; }
  void set_file(int /*fd*/) override {}

 private:
  struct UnderWay {
    std::uint32_t token;
    IoOperation operation;
  };
  std::vector<UnderWay> under_way_;
  std::deque<std::uint32_t> over_;
};

class BlockWrites : public ::testing::Test {
 protected:
  BlockWrites() {
    std::ofstream file(dir_.file("disk"), std::ios::binary);
    file << std::string(kSectors * 512, 'Z');
  }
  BlockDeviceConfig config() const {
    BlockDeviceConfig config;
    config.id = "written";
    config.path = dir_.file("disk");
    config.cache_type = BlockCacheType::kWriteback;
    config.discard = true;
    return config;
  }
  // Lets the device work on what was submitted until it has answered `answers` more.
  WrittenPages::Found answered(const std::string& what, std::uint16_t answers = 1) {
    SplitRing& ring = *rig_.rings[0];
    const auto end = static_cast<std::uint16_t>(ring.used_index() + answers);
    return pages_.during(what, [&] {
      rig_.notify();
      while (ring.used_index() != end) {
        ASSERT_NE(rig_.registrar.report_readable(10'000), 0U) << what << ": the device does not answer";
      }
    });
  }
  // One request that is answered by `status`, with that many bytes to write before it, and none told where
  // `told` says so.
  void request(const std::string& what, const std::vector<std::byte>& readable, std::uint32_t room,
               std::uint8_t status) {
    auto chain = rig_.rings[0]->chain();
    chain.readable(readable);
    if (room != 0) {
      chain.writable(room);
    }
    chain.writable(1).submit();
    EXPECT_THAT(answered(what).changed, SizeIs(::testing::Ge(2U))) << what;  // the used ring, the status
    const auto answers = rig_.rings[0]->collect_all();
    ASSERT_THAT(answers, SizeIs(1));
    EXPECT_EQ(answers[0].writable.back(), std::byte{status}) << what;
  }
  void submit_reads(unsigned count, std::uint32_t bytes) {
    for (unsigned index = 0; index < count; ++index) {
      rig_.rings[0]->chain().readable(header(VIRTIO_BLK_T_IN, 8)).writable(bytes).writable(1).submit();
    }
  }

  TempDir dir_;
  BlockRig rig_;
  WrittenPages pages_{rig_.memory()};
};

class BlockWritesBy : public BlockWrites, public ::testing::WithParamInterface<Drive> {
 protected:
  void SetUp() override {
    BlockDeviceConfig config = BlockWrites::config();
    if (GetParam() == Drive::kAsync) {
      config.engine = BlockEngineType::kAsync;
      if (const auto engine = UringEngine::create(-1, 1); !engine) {
        GTEST_SKIP() << "NOT TESTED HERE: io_uring, which the host refuses: " << engine.error().message();
      }
    }
    if (GetParam() == Drive::kOverlay) {
      config.overlay.emplace();
    }
    ASSERT_TRUE(rig_.make(config)) << rig_.error;
    rig_.start();
  }
};
INSTANTIATE_TEST_SUITE_P(engines, BlockWritesBy,
                         ::testing::Values(Drive::kSync, Drive::kAsync, Drive::kOverlay),
                         [](const auto& with) {
                           return with.param == Drive::kSync    ? "sync"
                                  : with.param == Drive::kAsync ? "async"
                                                                : "overlay";
                         });

TEST_P(BlockWritesBy, every_kind_of_request) {
  request("read", header(VIRTIO_BLK_T_IN, 0), 64 << 10, VIRTIO_BLK_S_OK);
  request("write", header(VIRTIO_BLK_T_OUT, 64) + filled(20480, 7), 0, VIRTIO_BLK_S_OK);
  request("read what was written", header(VIRTIO_BLK_T_IN, 56), 32 << 10, VIRTIO_BLK_S_OK);
  request("flush", header(VIRTIO_BLK_T_FLUSH, 0), 0, VIRTIO_BLK_S_OK);
  request("id", header(VIRTIO_BLK_T_GET_ID, 0), 9000, VIRTIO_BLK_S_OK);
  request("discard", header(VIRTIO_BLK_T_DISCARD, 0) + segment(128, 64) + segment(256, 8), 0,
          VIRTIO_BLK_S_OK);
  request("zeroes", header(VIRTIO_BLK_T_WRITE_ZEROES, 0) + segment(64, 8, 1), 0, VIRTIO_BLK_S_OK);
  request("read zeroes", header(VIRTIO_BLK_T_IN, 60), 16 << 10, VIRTIO_BLK_S_OK);
  // Refused: the room before the status is filled.
  request("past the end", header(VIRTIO_BLK_T_IN, kSectors - 1), 16 << 10, VIRTIO_BLK_S_IOERR);
  request("no whole sector", header(VIRTIO_BLK_T_IN, 0), 5000, VIRTIO_BLK_S_IOERR);
  request("unknown", header(77, 0), 12000, VIRTIO_BLK_S_UNSUPP);
  request("too many segments", header(VIRTIO_BLK_T_DISCARD, 0) + filled(16 * 17, 0), 0, VIRTIO_BLK_S_IOERR);
  request("short", filled(3, 0), 8192, VIRTIO_BLK_S_IOERR);
}

TEST_P(BlockWritesBy, many_requests_at_once) {
  for (int round = 0; round < 5; ++round) {
    submit_reads(40, 20480);
    const auto found = answered("reads", 40);
    EXPECT_THAT(found.changed, SizeIs(::testing::Ge(40U * 20480 / 4096)));
    ASSERT_THAT(rig_.rings[0]->collect_all(), SizeIs(40));
  }
}

// No more than the status, the used ring and what the chain has room for.
TEST_P(BlockWritesBy, what_is_only_read_is_not_noted) {
  rig_.rings[0]->chain().readable(header(VIRTIO_BLK_T_OUT, 64) + filled(20480, 7)).writable(1).submit();
  EXPECT_THAT(answered("write").noted, SizeIs(::testing::Le(3U)));
  ASSERT_THAT(rig_.rings[0]->collect_all(), SizeIs(1));
}

// The image ends in the middle of what is read: its first half is in memory, and IOERR is the answer.
TEST_P(BlockWritesBy, a_read_that_fails_on_its_way) {
  ASSERT_EQ(::truncate(dir_.file("disk").c_str(), 100 * 512), 0);
  request("read past the end", header(VIRTIO_BLK_T_IN, 60), 40960, VIRTIO_BLK_S_IOERR);
}

TEST_P(BlockWritesBy, whatever_goes_on_when_the_device_is_reset) {
  for (int round = 0; round < 10; ++round) {
    submit_reads(60, 40960);
    pages_.during("reset", [&] {
      rig_.driver->notify(0);
      rig_.registrar.report_readable(0);  // one round: the rest is left over, or under way
      ASSERT_TRUE(rig_.driver->reset());
    });
    rig_.start();
  }
}

class LateBlockWrites : public BlockWrites {
 protected:
  void SetUp() override {
    std::vector<std::unique_ptr<IoEngine>> engines;
    engines.push_back(std::make_unique<LateEngine>());
    ASSERT_TRUE(rig_.make(config(), std::move(engines))) << rig_.error;
    rig_.start();
    submit_reads(3, 20480);
    EXPECT_THAT(pages_.during("begin", [&] { rig_.notify(); }).changed, SizeIs(1)) << "avail_event";
  }
  // Two pages and a half of each of three requests.
  static auto some_of_each() { return SizeIs(::testing::Ge(6U)); }
};

TEST_F(LateBlockWrites, what_a_reset_cancels_may_have_written_before) {
  EXPECT_THAT(pages_.during("reset", [&] { ASSERT_TRUE(rig_.driver->reset()); }).changed, some_of_each());
  rig_.rings.clear();
}

TEST_F(LateBlockWrites, what_is_under_way_in_a_queue_that_is_stopped) {
  EXPECT_THAT(pages_.during("stop", [&] { ASSERT_TRUE(rig_.driver->stop_queue(0)); }).changed,
              some_of_each());
}

TEST_F(LateBlockWrites, what_is_under_way_when_the_state_is_asked_for) {
  const auto found = pages_.during("state", [&] {
    const MutexLock lock(rig_.device->mutex());
    EXPECT_TRUE(rig_.device->state().queues[0]);
  });
  EXPECT_THAT(found.changed, some_of_each());
  EXPECT_THAT(rig_.rings[0]->collect_all(), SizeIs(3));
}

// A device that needs a reset has no state of its queues. What it has under way ends before memory is saved
// all the same.
TEST_F(LateBlockWrites, what_is_under_way_when_the_driver_broke_the_queue) {
  pages_.during("broken", [&] {
    rig_.rings[0]->write_available_index(5000);
    rig_.driver->notify(0);
    rig_.run();
  });
  ASSERT_TRUE(rig_.driver->needs_reset());
  const auto found = pages_.during("state", [&] {
    const MutexLock lock(rig_.device->mutex());
    EXPECT_FALSE(rig_.device->state().queues[0]);
  });
  EXPECT_THAT(found.changed, some_of_each());
  const auto later = pages_.during("reset", [&] { ASSERT_TRUE(rig_.driver->reset()); });
  EXPECT_THAT(later.changed, IsEmpty());
  rig_.rings.clear();
}

}  // namespace
}  // namespace mayfly::testing
