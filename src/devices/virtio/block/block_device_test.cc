#include "devices/virtio/block/block_device.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <deque>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/metrics.h"
#include "devices/virtio/block/sync_engine.h"
#include "devices/virtio/block/uring_engine.h"
#include "support/allocation_count.h"
#include "support/block_rig.h"
#include "support/temp_dir.h"

namespace mayfly::testing {
namespace {

using namespace blk;  // NOLINT(google-build-using-namespace): the specification's names
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using Kind = IoOperation::Kind;

constexpr std::uint64_t kSectors = 2048;

// Where the fields of the configuration space lie: 5.2.4.
constexpr std::uint64_t kCapacity = 0;
constexpr std::uint64_t kSizeMax = 8;
constexpr std::uint64_t kSegMax = 12;
constexpr std::uint64_t kBlkSize = 20;
constexpr std::uint64_t kPhysicalBlockExp = 24;
constexpr std::uint64_t kMinIoSize = 26;
constexpr std::uint64_t kWriteback = 32;
constexpr std::uint64_t kNumQueues = 34;
constexpr std::uint64_t kMaxDiscardSectors = 36;
constexpr std::uint64_t kMaxDiscardSeg = 40;
constexpr std::uint64_t kMaxWriteZeroesSectors = 48;
constexpr std::uint64_t kMaxWriteZeroesSeg = 52;
constexpr std::uint64_t kMayUnmap = 56;

bool has_uring() {
  static const bool result = [] {
    const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    auto engine = UringEngine::create(null.get(), 8);
    if (!engine) {
      std::fprintf(stderr, "NOT TESTED HERE: io_uring, which the host refuses: %s\n",
                   engine.error().message().c_str());
    }
    return engine.has_value();
  }();
  return result;
}

std::uint64_t g_now_ns = 0;
constexpr Clock kTestClock{[] { return g_now_ns; }, [] { return g_now_ns; }};

// Does what a test tells it. Asynchronous where it has a descriptor to tell of completions by.
class ScriptedEngine final : public IoEngine {
 public:
  struct Script {
    std::vector<IoOperation> seen;      // in order; their buffers are not to be used
    std::deque<int> results;            // errno of the operations to come; 0 where there are none
    std::deque<std::uint32_t> pending;  // tokens under way
    int drains = 0;
    int cancels = 0;
    int drains_before_cancel = 0;
    int kicks = 0;
    std::chrono::nanoseconds takes{0};  // each operation, by kTestClock
    UniqueFd ready;                     // an eventfd: asynchronous
  };
  explicit ScriptedEngine(Script& script) : script_(script) {}

  std::optional<IoResult> submit(std::uint32_t token, const IoOperation& operation) override {
    script_.seen.push_back(operation);
    g_now_ns += static_cast<std::uint64_t>(script_.takes.count());
    if (!script_.ready) {
      return IoResult{next()};
    }
    script_.pending.push_back(token);
    return std::nullopt;
  }
  bool kick() override {
    ++script_.kicks;
    return true;
  }
  std::optional<IoCompletion> reap() override {
    if (over_ == 0 || script_.pending.empty()) {
      std::uint64_t count = 0;
      [[maybe_unused]] const auto got = ::read(script_.ready.get(), &count, sizeof(count));
      over_ = got == sizeof(count) ? count : 0;
      if (over_ == 0 || script_.pending.empty()) {
        return std::nullopt;
      }
    }
    --over_;
    const std::uint32_t token = script_.pending.front();
    script_.pending.pop_front();
    return IoCompletion{token, {next()}};
  }
  void drain() override {
    ++script_.drains;
    over_ = script_.pending.size();
  }
  void cancel() override {
    ++script_.cancels;
    script_.drains_before_cancel = script_.drains;
  }
  int completion_fd() const override { return script_.ready.get(); }
  void set_file(int /*fd*/) override {}

 private:
  int next() {
    if (script_.results.empty()) {
      return 0;
    }
    const int result = script_.results.front();
    script_.results.pop_front();
    return result;
  }
  Script& script_;
  std::uint64_t over_ = 0;
};

class BlockDeviceTest : public ::testing::Test {
 protected:
  BlockDeviceTest() {
    make_image(kSectors * 512);
    base_.read_count = counters().read_count.value();
  }

  // Each sector holds its own number in its first two bytes and 'Z' after them.
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
  // So that reads have to wait for the host's disk, where it has one under the file.
  void evict() const {
    const UniqueFd file(::open(dir_.file("disk").c_str(), O_RDONLY | O_CLOEXEC));
    ::fdatasync(file.get());
    ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  }
  std::string whole_disk() const { return read_file(dir_.file("disk")); }

  virtual BlockDeviceConfig config() const {
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
  void start_scripted(const BlockDeviceConfig& config, std::uint64_t features = BlockRig::kAllFeatures,
                      const Clock& clock = kSystemClock) {
    std::vector<std::unique_ptr<IoEngine>> engines;
    engines.push_back(std::make_unique<ScriptedEngine>(script_));
    ASSERT_TRUE(rig_.make(config, std::move(engines), clock)) << rig_.error;
    rig_.start(features, static_cast<std::uint16_t>(config.queue_count));
  }
  // One round.
  void process_once() {
    const MutexLock lock(rig_.device->mutex());
    rig_.device->process();
  }
  void make_script_asynchronous() { script_.ready = std::move(*make_eventfd()); }
  void complete_scripted(std::uint64_t count) {
    ASSERT_EQ(::write(script_.ready.get(), &count, sizeof(count)), 8);
  }
  static BlockMetrics& counters() { return metrics().block_device("rootfs"); }

  struct {
    std::uint64_t read_count = 0;
  } base_;
  TempDir dir_;
  ScriptedEngine::Script script_;
  std::array<ScriptedEngine::Script, 2> scripts_;
  BlockRig rig_;
};

// --- what holds for either engine ---

class EitherEngineTest : public BlockDeviceTest, public ::testing::WithParamInterface<BlockEngineType> {
 protected:
  void SetUp() override {
    if (GetParam() == BlockEngineType::kAsync && !has_uring()) {
      GTEST_SKIP() << "NOT TESTED HERE: the host refuses io_uring";
    }
  }
  BlockDeviceConfig config() const override {
    BlockDeviceConfig config = BlockDeviceTest::config();
    config.engine = GetParam();
    return config;
  }
};

INSTANTIATE_TEST_SUITE_P(engines, EitherEngineTest,
                         ::testing::Values(BlockEngineType::kSync, BlockEngineType::kAsync),
                         [](const auto& with) {
                           return with.param == BlockEngineType::kSync ? "sync" : "async";
                         });

TEST_P(EitherEngineTest, read_gives_the_sectors_of_the_image) {
  start(config());
  const auto bytes_before = counters().read_bytes.value();
  const auto answer = rig_.in(5, 4096);
  EXPECT_EQ(answer.status, VIRTIO_BLK_S_OK);
  EXPECT_EQ(answer.length, 4097U);
  EXPECT_EQ(answer.data, sectors(5, 8));
  EXPECT_EQ(counters().read_count.value(), base_.read_count + 1);
  EXPECT_EQ(counters().read_bytes.value(), bytes_before + 4096);
}

TEST_P(EitherEngineTest, write_changes_the_image_there_and_nowhere_else) {
  start(config());
  std::string expected = whole_disk();
  expected.replace(7 * 512, 1024, 1024, '\xc3');
  EXPECT_EQ(rig_.out(7, filled(1024, 0xc3)), VIRTIO_BLK_S_OK);
  EXPECT_TRUE(whole_disk() == expected);
  EXPECT_EQ(rig_.in(7, 1024).data, filled(1024, 0xc3));
}

// A file of whose transfers the host cannot say beforehand whether they wait, which a disk's usually can.
TEST_P(EitherEngineTest, image_in_the_hosts_memory_is_read_and_written) {
  const UniqueFd memory(::memfd_create("disk", MFD_CLOEXEC));
  const std::string disk = whole_disk();
  ASSERT_EQ(::write(memory.get(), disk.data(), disk.size()), static_cast<ssize_t>(disk.size()));
  BlockDeviceConfig in_memory = config();
  const std::string path = "/proc/self/fd/" + std::to_string(memory.get());
  in_memory.path = path;
  start(in_memory);
  EXPECT_EQ(rig_.in(5, 4096).data, sectors(5, 8));
  EXPECT_EQ(rig_.out(7, filled(1024, 0xc3)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.in(6, 1536).data, sectors(6, 1) + filled(1024, 0xc3));
  // A file of the other kind, and this one again.
  for (const std::string& next : {config().path, path}) {
    const MutexLock lock(rig_.device->mutex());
    ASSERT_TRUE(rig_.device->update_backing(next));
  }
  rig_.run();
  EXPECT_EQ(rig_.in(7, 1024).data, filled(1024, 0xc3));
}

TEST_P(EitherEngineTest, framing_is_the_drivers_choice) {
  start(config());
  SplitRing& ring = *rig_.rings[0];
  const auto head = header(VIRTIO_BLK_T_IN, 3);
  for (const bool indirect : {false, true}) {
    auto read = ring.chain();
    read.readable(std::span(head).first(3)).readable(std::span(head).subspan(3, 12));
    read.readable(std::span(head).subspan(15)).writable(1).writable(700).writable(1024 - 701 + 1);
    if (indirect) {
      read.indirect(1);
    }
    read.submit();
    const auto answers = rig_.collect();
    ASSERT_THAT(answers, SizeIs(1));
    EXPECT_EQ(answers[0].status, VIRTIO_BLK_S_OK);
    EXPECT_EQ(answers[0].data, sectors(3, 2));
  }
  // Header and data share buffers, and the status has one of its own.
  const auto request = header(VIRTIO_BLK_T_OUT, 9) + filled(512, 0x77);
  ring.chain()
      .readable(std::span(request).first(100))
      .readable(std::span(request).subspan(100))
      .writable(1)
      .submit();
  ASSERT_THAT(rig_.collect(), ElementsAre(Field(&BlockRig::Answer::status, VIRTIO_BLK_S_OK)));
  EXPECT_EQ(rig_.in(9, 512).data, filled(512, 0x77));
}

TEST_P(EitherEngineTest, as_many_data_descriptors_as_are_told_are_taken) {
  start(config());
  SplitRing& ring = *rig_.rings[0];
  auto read = ring.chain();
  read.readable(header(VIRTIO_BLK_T_IN, 0));
  for (std::uint32_t index = 0; index < BlockDevice::kSegMax; ++index) {
    read.writable(512);
  }
  read.writable(1).submit();
  const auto answers = rig_.collect();
  ASSERT_THAT(answers, SizeIs(1));
  EXPECT_EQ(answers[0].status, VIRTIO_BLK_S_OK);
  EXPECT_EQ(answers[0].data, sectors(0, BlockDevice::kSegMax));
}

TEST_P(EitherEngineTest, many_requests_at_once_all_come_back_with_few_interrupts) {
  start(config());
  SplitRing& ring = *rig_.rings[0];
  ring.set_used_event(static_cast<std::uint16_t>(ring.used_index()));
  const int before = rig_.line.count();
  for (std::uint64_t index = 0; index < 80; ++index) {
    ring.chain().readable(header(VIRTIO_BLK_T_IN, index * 4)).writable(2049).submit();
  }
  const auto answers = rig_.collect();
  ASSERT_THAT(answers, SizeIs(80));
  EXPECT_THAT(answers, Each(Field(&BlockRig::Answer::status, VIRTIO_BLK_S_OK)));
  for (const auto& answer : answers) {
    const auto sector =
        static_cast<std::uint64_t>(answer.data[0]) | static_cast<std::uint64_t>(answer.data[1]) << 8;
    EXPECT_EQ(answer.data, sectors(sector, 4));
  }
  EXPECT_EQ(rig_.line.count(), before + 1);
}

TEST_P(EitherEngineTest, capacity_is_where_the_drive_ends) {
  start(config());
  EXPECT_EQ(rig_.in(kSectors - 1, 512).data, sectors(kSectors - 1, 1));
  const auto invalid = counters().invalid_reqs_count.value();
  std::uint64_t refused = 0;
  for (const std::uint64_t sector :
       {kSectors, kSectors - 1, std::uint64_t{1} << 55, ~std::uint64_t{0}, ~std::uint64_t{0} - 1}) {
    EXPECT_EQ(rig_.in(sector, 1024).status, VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(rig_.out(sector, filled(1024, 1)), VIRTIO_BLK_S_IOERR);
    refused += 2;
  }
  EXPECT_EQ(counters().invalid_reqs_count.value(), invalid + refused);
  EXPECT_EQ(whole_disk().size(), kSectors * 512);
}

TEST_P(EitherEngineTest, image_that_shrank_gives_an_error_and_zeroes) {
  start(config());
  std::filesystem::resize_file(dir_.file("disk"), 10 * 512);
  const auto failed = counters().execute_fails.value();
  const auto answer = rig_.in(8, 4096);
  EXPECT_EQ(answer.status, VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(answer.data, filled(4096, 0));
  EXPECT_EQ(counters().execute_fails.value(), failed + 1);
  EXPECT_EQ(rig_.in(8, 1024).data, sectors(8, 2));
}

// What was cut off is not made again behind its owner's back, as a hole.
TEST_P(EitherEngineTest, image_that_shrank_does_not_grow_again) {
  start(config());
  std::filesystem::resize_file(dir_.file("disk"), 10 * 512);
  const auto failed = counters().execute_fails.value();
  EXPECT_EQ(rig_.out(10, filled(512, 1)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.out(9, filled(1024, 1)), VIRTIO_BLK_S_IOERR) << "across the end";
  EXPECT_EQ(rig_.out(kSectors - 1, filled(512, 1)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(0, 1) + segment(9, 2)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(100, 1, 1)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_DISCARD, segment(16, 16)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(counters().execute_fails.value(), failed + 6);
  EXPECT_EQ(whole_disk().size(), 10U * 512);

  EXPECT_EQ(rig_.in(9, 512).data, sectors(9, 1)) << "of a write across the end nothing is done";
  EXPECT_EQ(rig_.out(9, filled(512, 7)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(8, 1)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_DISCARD, segment(0, 1)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK) << "of what is there";
  EXPECT_EQ(rig_.in(8, 1024).data, filled(512, 0) + filled(512, 7));
  EXPECT_EQ(whole_disk().size(), 10U * 512);

  // Its owner makes it whole: it is a disk again.
  std::filesystem::resize_file(dir_.file("disk"), kSectors * 512);
  EXPECT_EQ(rig_.out(kSectors - 1, filled(512, 3)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.in(kSectors - 1, 512).data, filled(512, 3));
}

TEST_P(EitherEngineTest, image_that_vanished_goes_on_as_long_as_it_is_open) {
  start(config());
  std::filesystem::remove(dir_.file("disk"));
  EXPECT_EQ(rig_.in(8, 1024).data, sectors(8, 2));
}

TEST_P(EitherEngineTest, write_zeroes_makes_zeroes_with_and_without_unmap) {
  start(config());
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(3, 20) + segment(100, 1, 1) + segment(0, 0)),
            VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.in(2, 512).data, sectors(2, 1));
  EXPECT_EQ(rig_.in(3, 20 * 512).data, filled(20 * 512, 0));
  EXPECT_EQ(rig_.in(23, 512).data, sectors(23, 1));
  EXPECT_EQ(rig_.in(99, 1536).data, sectors(99, 1) + filled(512, 0) + sectors(101, 1));
}

TEST_P(EitherEngineTest, discard_touches_no_other_sectors) {
  start(config());
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_DISCARD, segment(16, 64) + segment(1024, 1024)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.in(0, 16 * 512).data, sectors(0, 16));
  EXPECT_EQ(rig_.in(80, 512).data, sectors(80, 1));
  EXPECT_EQ(rig_.in(1023, 512).data, sectors(1023, 1));
  EXPECT_EQ(whole_disk().size(), kSectors * 512);
}

TEST_P(EitherEngineTest, flush_and_id_are_answered) {
  start(config());
  const auto flushes = counters().flush_count.value();
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  EXPECT_EQ(counters().flush_count.value(), flushes + 1);
  const auto id = rig_.request(header(VIRTIO_BLK_T_GET_ID, 0), 21);
  EXPECT_EQ(id.status, VIRTIO_BLK_S_OK);
  std::vector<std::byte> expected(20);
  std::memcpy(expected.data(), "rootfs", 6);
  EXPECT_EQ(id.data, expected);
  EXPECT_EQ(rig_.request(header(VIRTIO_BLK_T_GET_ID, 0), 20).status, VIRTIO_BLK_S_IOERR);
}

TEST_P(EitherEngineTest, writes_are_done_when_the_cache_is_switched_off) {
  start(config());
  rig_.driver->write_config_u8(kWriteback, 0);
  EXPECT_EQ(rig_.out(1, filled(512, 0x11)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(2, 1)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.in(1, 1024).data, filled(512, 0x11) + filled(512, 0));
}

TEST_P(EitherEngineTest, every_queue_is_served) {
  auto many = config();
  many.queue_count = 4;
  start(many);
  EXPECT_EQ(rig_.driver->config_u16(kNumQueues), 4U);
  for (std::uint16_t queue = 0; queue < 4; ++queue) {
    EXPECT_EQ(rig_.out(queue, filled(512, 0x40U + queue), queue), VIRTIO_BLK_S_OK);
  }
  for (std::uint16_t queue = 0; queue < 4; ++queue) {
    const auto from = static_cast<std::uint16_t>(3 - queue);
    EXPECT_EQ(rig_.in(queue, 512, from).data, filled(512, 0x40U + queue));
  }
}

TEST_P(EitherEngineTest, reset_ends_all_access_to_the_guests_memory) {
  start(config());
  for (int round = 0; round < 50; ++round) {
    SplitRing& ring = *rig_.rings[0];
    evict();
    for (std::uint64_t index = 0; index < 16; ++index) {
      ring.chain()
          .readable(header(VIRTIO_BLK_T_IN, 0))
          .writable_at(0x800000 + index * 0x40000, 0x40001)
          .submit();
    }
    rig_.driver->notify(0);
    rig_.registrar.report_readable(0);
    ASSERT_TRUE(rig_.driver->reset());
    const std::vector<std::byte> blank(16 * 0x40000 + 1, std::byte{0xdd});
    rig_.driver_memory().write(0x800000, blank);
    rig_.run();
    ::usleep(200);
    ASSERT_TRUE(rig_.driver_memory().read_bytes(0x800000, blank.size()) == blank);
    const auto agreed = rig_.driver->negotiate(BlockRig::kAllFeatures);
    ASSERT_TRUE(agreed);
    rig_.finish_start();
  }
  EXPECT_EQ(rig_.in(5, 512).data, sectors(5, 1));
}

// The driver on a thread of its own, as a vCPU's, and the queues on this one.
TEST_P(EitherEngineTest, reset_from_another_thread_ends_all_access) {
  auto two = config();
  two.queue_count = 2;
  start(two);
  rig_.runs_elsewhere = true;
  std::atomic<bool> over{false};
  std::atomic<int> changed{0};
  std::thread vcpu([this, &over, &changed] {
    const std::vector<std::byte> blank(16 * 0x8000 + 1, std::byte{0xdd});
    for (int round = 0; round < 200; ++round) {
      evict();
      for (std::uint64_t index = 0; index < 32; ++index) {
        rig_.rings[index % 2]
            ->chain()
            .readable(header(VIRTIO_BLK_T_IN, 0))
            .writable_at(0x700000 + index / 2 * 0x8000, 0x8001)
            .submit();
      }
      rig_.driver->notify(0);
      ::usleep(static_cast<useconds_t>(round % 10 * 20));
      rig_.driver->reset();
      rig_.driver_memory().write(0x700000, blank);
      ::usleep(100);
      changed += rig_.driver_memory().read_bytes(0x700000, blank.size()) == blank ? 0 : 1;
      rig_.driver->negotiate(BlockRig::kAllFeatures);
      rig_.finish_start(2);
    }
    over = true;
  });
  while (!over) {
    rig_.registrar.report_readable(1);
  }
  vcpu.join();
  EXPECT_EQ(changed, 0);
  rig_.runs_elsewhere = false;
  EXPECT_EQ(rig_.in(5, 512).data, sectors(5, 1));
}

TEST_P(EitherEngineTest, running_queue_allocates_nothing) {
  start(config());
  SplitRing& ring = *rig_.rings[0];
  for (int round = 0; round < 3; ++round) {
    for (std::uint64_t index = 0; index < 40; ++index) {
      ring.chain().readable(header(VIRTIO_BLK_T_IN, index)).writable(2048).writable(2049).submit();
      ring.chain().readable(header(VIRTIO_BLK_T_OUT, 99)).readable(filled(512, 1)).writable(1).submit();
    }
    rig_.driver->notify(0);
    // The doorbell is looked at by hand: the rig itself allocates.
    const std::size_t before = allocation_count();
    {
      const MutexLock lock(rig_.device->mutex());
      rig_.device->process();
    }
    if (round == 2) {
      EXPECT_EQ(allocation_count(), before);
    }
    ASSERT_THAT(rig_.collect(), SizeIs(80));
  }
}

TEST_P(EitherEngineTest, new_image_takes_the_place_of_the_old_one) {
  start(config());
  make_image(512 * 512, "other");
  std::fstream(dir_.file("other"), std::ios::in | std::ios::out | std::ios::binary) << "new";
  const auto generation = rig_.driver->read_register(mmio::kConfigGeneration);
  rig_.driver->handle_interrupt();
  {
    const MutexLock lock(rig_.device->mutex());
    ASSERT_TRUE(rig_.device->update_backing(dir_.file("other")));
  }
  EXPECT_NE(rig_.driver->read_register(mmio::kConfigGeneration), generation);
  EXPECT_EQ(rig_.driver->handle_interrupt() & kConfigurationChangeNotification,
            kConfigurationChangeNotification);
  EXPECT_EQ(rig_.driver->config_u64(kCapacity), 512U);
  EXPECT_EQ(static_cast<char>(rig_.in(0, 512).data[0]), 'n');
  EXPECT_EQ(rig_.in(512, 512).status, VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.out(0, filled(512, 1)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(whole_disk()[2], 'Z');
  // The old one is nobody's any more, the new one ours.
  BlockRig second;
  EXPECT_TRUE(second.make(config())) << second.error;
  auto taken = config();
  taken.path = dir_.file("other");
  EXPECT_FALSE(BlockRig().make(taken));
}

TEST_P(EitherEngineTest, image_that_cannot_be_taken_changes_nothing) {
  start(config());
  const auto failures = counters().update_fails.value();
  {
    const MutexLock lock(rig_.device->mutex());
    const auto refused = rig_.device->update_backing(dir_.file("missing"));
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("drive rootfs"));
    EXPECT_THAT(refused.error().message(), HasSubstr("missing"));
  }
  EXPECT_EQ(counters().update_fails.value(), failures + 1);
  EXPECT_EQ(rig_.driver->config_u64(kCapacity), kSectors);
  EXPECT_EQ(rig_.in(5, 512).data, sectors(5, 1));
}

TEST_P(EitherEngineTest, image_that_another_holds_is_refused) {
  start(config());
  make_image(512 * 512, "other");
  const DiskImage::Options writer{.access = ImageAccess::kReadAndWrite};
  const auto holder = DiskImage::open("drive other", dir_.file("other"), writer);
  ASSERT_TRUE(holder) << holder.error().message();
  {
    const MutexLock lock(rig_.device->mutex());
    const auto refused = rig_.device->update_backing(dir_.file("other"));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::kBusy);
  }
  EXPECT_EQ(rig_.in(5, 512).data, sectors(5, 1));
}

// Also where the kernel still holds the file for an io_uring.
TEST_P(EitherEngineTest, image_is_free_once_the_drive_has_another_or_is_gone) {
  const DiskImage::Options writer{.access = ImageAccess::kReadAndWrite};
  start(config());
  EXPECT_EQ(rig_.in(5, 512).data, sectors(5, 1));
  make_image(512 * 512, "other");
  {
    const MutexLock lock(rig_.device->mutex());
    ASSERT_TRUE(rig_.device->update_backing(dir_.file("other")));
  }
  EXPECT_TRUE(DiskImage::open("drive b", dir_.file("disk"), writer));
  EXPECT_FALSE(DiskImage::open("drive b", dir_.file("other"), writer));
  rig_.in(5, 512);
  rig_.driver.reset();
  rig_.window.reset();
  rig_.transport.reset();
  rig_.device.reset();
  EXPECT_TRUE(DiskImage::open("drive b", dir_.file("other"), writer));
}

TEST_P(EitherEngineTest, image_that_has_grown_is_taken_up_by_the_same_path) {
  start(config());
  std::filesystem::resize_file(dir_.file("disk"), 2 * kSectors * 512);
  {
    const MutexLock lock(rig_.device->mutex());
    ASSERT_TRUE(rig_.device->update_backing(dir_.file("disk")));
  }
  EXPECT_EQ(rig_.driver->config_u64(kCapacity), 2 * kSectors);
  EXPECT_EQ(rig_.in(kSectors, 512).data, filled(512, 0));
}

// --- what does not depend on the engine ---

TEST_F(BlockDeviceTest, an_image_without_a_sector_is_no_root_device_and_else_an_empty_disk) {
  for (const std::uint64_t bytes : {0U, 511U}) {
    make_image(bytes, "empty");
    BlockDeviceConfig config = this->config();
    config.path = dir_.file("empty");
    config.is_root = true;
    const auto root = BlockDevice::open(config);
    ASSERT_FALSE(root);
    EXPECT_EQ(root.error().code(), ErrorCode::kInvalidImage);
    EXPECT_THAT(root.error().message(), ::testing::HasSubstr("drive rootfs: " + config.path + " has "));
    EXPECT_THAT(root.error().message(), ::testing::HasSubstr(bytes == 0 ? "no bytes" : "less than a sector"));
    config.is_root = false;
    const auto other = BlockDevice::open(config);
    ASSERT_TRUE(other) << other.error().message();
    EXPECT_EQ(other->image.sectors(), 0U);
  }
}

TEST_F(BlockDeviceTest, a_root_device_keeps_its_image_where_the_next_one_is_empty) {
  make_image(0, "empty");
  BlockDeviceConfig config = this->config();
  config.is_root = true;
  start(config);
  {
    const MutexLock lock(rig_.device->mutex());
    const auto refused = rig_.device->update_backing(dir_.file("empty"));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::kInvalidImage);
  }
  EXPECT_EQ(rig_.in(5, 512).data, sectors(5, 1));
}

TEST_F(BlockDeviceTest, configuration_space_tells_size_and_limits) {
  auto many = config();
  many.queue_count = 2;
  start(many);
  MmioDriver& driver = *rig_.driver;
  EXPECT_EQ(driver.config_u64(kCapacity), kSectors);
  EXPECT_EQ(driver.config_u32(kSizeMax), BlockDevice::kSizeMax);
  EXPECT_EQ(driver.config_u32(kSegMax), 254U);
  EXPECT_EQ(driver.config_u32(kBlkSize), 512U);
  EXPECT_EQ(driver.config_u8(kPhysicalBlockExp), 3U);
  EXPECT_EQ(driver.config_u16(kMinIoSize), 8U);
  EXPECT_EQ(driver.config_u8(kWriteback), 1U);
  EXPECT_EQ(driver.config_u16(kNumQueues), 2U);
  EXPECT_EQ(driver.config_u32(kMaxDiscardSectors), BlockDevice::kMaxDiscardSectors);
  EXPECT_EQ(driver.config_u32(kMaxDiscardSeg), BlockDevice::kMaxDiscardSegments);
  EXPECT_EQ(driver.config_u32(kMaxWriteZeroesSectors), BlockDevice::kMaxWriteZeroesSectors);
  EXPECT_EQ(driver.config_u32(kMaxWriteZeroesSeg), BlockDevice::kMaxWriteZeroesSegments);
  EXPECT_EQ(driver.config_u8(kMayUnmap), 1U);
  for (const std::uint64_t unused : {33U, 57U, 58U, 59U, 60U, 200U, 0xeffU}) {
    EXPECT_EQ(driver.config_u8(unused), 0U) << unused;
  }
  EXPECT_EQ(rig_.window->read(0x100 + 56, 8), 1U);
}

TEST_F(BlockDeviceTest, features_follow_the_configuration) {
  ASSERT_TRUE(rig_.make(config()));
  const std::uint64_t always = BlockDevice::kFeatureSizeMax | BlockDevice::kFeatureSegMax |
                               BlockDevice::kFeatureBlockSize | BlockDevice::kFeatureTopology |
                               kFeatureIndirectDesc | kFeatureEventIndex;
  const std::uint64_t safe = BlockDevice::kFeatureFlush | BlockDevice::kFeatureConfigWce;
  EXPECT_EQ(rig_.device->features(),
            always | safe | BlockDevice::kFeatureDiscard | BlockDevice::kFeatureWriteZeroes);
  auto other = config();
  other.lock = false;
  other.cache_type = BlockCacheType::kUnsafe;
  other.discard = false;
  other.queue_count = 16;
  BlockRig unsafe;
  ASSERT_TRUE(unsafe.make(other));
  EXPECT_EQ(unsafe.device->features(),
            always | BlockDevice::kFeatureWriteZeroes | BlockDevice::kFeatureMultiQueue);
  EXPECT_THAT(unsafe.device->queue_limits(), SizeIs(16));
  other.read_only = true;
  other.queue_count = 1;
  BlockRig read_only;
  ASSERT_TRUE(read_only.make(other));
  EXPECT_EQ(read_only.device->features(), always | BlockDevice::kFeatureReadOnly);
}

TEST_F(BlockDeviceTest, cache_mode_without_flush_is_writethrough_before_driver_ok) {
  ASSERT_TRUE(rig_.make(config()));
  ASSERT_TRUE(rig_.driver->negotiate(kFeatureVersion1 | BlockDevice::kFeatureConfigWce));
  EXPECT_EQ(rig_.driver->config_u8(kWriteback), 0U);
  ASSERT_TRUE(rig_.driver->negotiate(BlockRig::kAllFeatures));
  EXPECT_EQ(rig_.driver->config_u8(kWriteback), 1U);
}

TEST_F(BlockDeviceTest, cache_mode_is_written_as_negotiated_only) {
  start(config(), BlockRig::kAllFeatures & ~BlockDevice::kFeatureConfigWce);
  const auto failures = counters().cfg_fails.value();
  rig_.driver->write_config_u8(kWriteback, 0);
  EXPECT_EQ(rig_.driver->config_u8(kWriteback), 1U);
  ASSERT_TRUE(rig_.driver->reset());
  rig_.start();
  rig_.driver->write_config_u8(kWriteback, 2);
  rig_.driver->write_config_u32(kWriteback, 0);
  rig_.driver->write_config_u8(kCapacity, 0);
  EXPECT_EQ(rig_.driver->config_u8(kWriteback), 1U);
  EXPECT_EQ(counters().cfg_fails.value(), failures + 4);
  rig_.driver->write_config_u8(kWriteback, 0);
  EXPECT_EQ(rig_.driver->config_u8(kWriteback), 0U);
  ASSERT_TRUE(rig_.driver->reset());
  EXPECT_EQ(rig_.device->state().writeback, true);
}

TEST_F(BlockDeviceTest, writes_are_durable_where_the_driver_may_count_on_it) {
  const auto durable_with = [this](std::uint64_t without, std::optional<std::uint8_t> writeback) {
    start_scripted(config(), BlockRig::kAllFeatures & ~without);
    if (writeback) {
      rig_.driver->write_config_u8(kWriteback, *writeback);
    }
    script_.seen.clear();
    rig_.out(0, filled(512, 1));
    rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(0, 1));
    const bool durable = script_.seen.at(0).durable;
    // Of zeroes by a flush of their own.
    EXPECT_EQ(script_.seen.size(), durable ? 3U : 2U);
    EXPECT_EQ(script_.seen.back().kind, durable ? Kind::kFlush : Kind::kZero);
    return durable;
  };
  constexpr auto kWce = BlockDevice::kFeatureConfigWce;
  constexpr auto kFlush = BlockDevice::kFeatureFlush;
  EXPECT_FALSE(durable_with(0, std::nullopt));
  EXPECT_FALSE(durable_with(kWce, std::nullopt));
  EXPECT_TRUE(durable_with(kWce | kFlush, std::nullopt));
  EXPECT_TRUE(durable_with(kFlush, std::nullopt));
  EXPECT_TRUE(durable_with(0, std::uint8_t{0}));
  EXPECT_FALSE(durable_with(0, std::uint8_t{1}));
}

TEST_F(BlockDeviceTest, unsafe_drive_flushes_nothing) {
  auto unsafe = config();
  unsafe.cache_type = BlockCacheType::kUnsafe;
  start_scripted(unsafe);
  EXPECT_EQ(rig_.out(0, filled(512, 1)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  ASSERT_THAT(script_.seen, SizeIs(1));
  EXPECT_FALSE(script_.seen[0].durable);
}

TEST_F(BlockDeviceTest, malformed_requests_are_answered_with_an_error) {
  start(config());
  const std::string before = whole_disk();
  const auto invalid = counters().invalid_reqs_count.value();
  EXPECT_EQ(rig_.in(0, 511).status, VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.in(0, 511).data, filled(511, 0));
  EXPECT_EQ(rig_.out(0, filled(513, 1)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.request(filled(15, 0), 513).status, VIRTIO_BLK_S_IOERR);
  rig_.rings[0]->chain().writable(1).submit();
  EXPECT_THAT(rig_.collect(), ElementsAre(Field(&BlockRig::Answer::status, VIRTIO_BLK_S_IOERR)));
  EXPECT_EQ(rig_.in(0, 0).status, VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.out(0, {}), VIRTIO_BLK_S_OK);
  EXPECT_EQ(counters().invalid_reqs_count.value(), invalid + 5);
  EXPECT_TRUE(whole_disk() == before);
}

TEST_F(BlockDeviceTest, request_that_cannot_be_answered_comes_back_with_nothing_written) {
  start(config());
  const auto invalid = counters().invalid_reqs_count.value();
  EXPECT_EQ(rig_.request(header(VIRTIO_BLK_T_OUT, 0) + filled(512, 1), 0).length, 0U);
  EXPECT_EQ(counters().invalid_reqs_count.value(), invalid + 1);
  EXPECT_FALSE(rig_.driver->needs_reset());
  EXPECT_EQ(rig_.in(0, 512).data, sectors(0, 1));
}

TEST_F(BlockDeviceTest, more_data_than_the_limits_allow_is_refused) {
  make_image(16U << 20);
  start_scripted(config());
  const auto most = static_cast<std::uint32_t>(BlockDevice::kMaxRequestBytes);
  EXPECT_LE(most, 4U << 20);
  EXPECT_EQ(rig_.in(0, most).status, VIRTIO_BLK_S_OK);
  ASSERT_THAT(script_.seen, SizeIs(1));
  EXPECT_EQ(script_.seen[0].length, most);
  script_.seen.clear();
  // It is not worth the time to fill what has no end.
  const std::uint64_t place = BlockRig::kArena + (1U << 20);
  rig_.driver_memory().write(place, filled(8192, 0xdd));
  for (const std::uint32_t bytes : {most + 512, 14U << 20}) {
    for (const std::uint32_t type : {VIRTIO_BLK_T_IN, VIRTIO_BLK_T_GET_ID}) {
      rig_.rings[0]->chain().readable(header(type, 0)).writable_at(place, bytes).writable(1).submit();
      const auto answers = rig_.collect();
      ASSERT_THAT(answers, SizeIs(1));
      EXPECT_EQ(answers[0].length, 0U);
      EXPECT_EQ(rig_.driver_memory().read_bytes(place, 8192), filled(8192, 0xdd));
    }
  }
  EXPECT_THAT(script_.seen, IsEmpty());
}

// 256 pages of which every other is the next one's neighbour: more scattered than a page cache has them.
TEST_F(BlockDeviceTest, sequential_mebibyte_is_one_request) {
  EXPECT_GE(BlockDevice::kSizeMax, 4096U);
  EXPECT_GE(std::uint64_t{BlockDevice::kSegMax} * BlockDevice::kSizeMax, 1U << 20);
  make_image(4U << 20);
  start_scripted(config());
  auto read = rig_.rings[0]->chain();
  read.readable(header(VIRTIO_BLK_T_IN, 0));
  for (std::uint64_t pages = 0; pages < 256; pages += 2) {
    read.writable_at(BlockRig::kArena + (1U << 20) + pages * 8192, 8192);
  }
  read.writable(1).submit();
  const auto answers = rig_.collect();
  ASSERT_THAT(answers, SizeIs(1));
  EXPECT_EQ(answers[0].length, (1U << 20) + 1);
  ASSERT_THAT(script_.seen, SizeIs(1));
  EXPECT_EQ(script_.seen[0].length, 1U << 20);
}

TEST_F(BlockDeviceTest, what_is_not_supported_is_said_so) {
  start(config());
  for (const std::uint32_t type : {2U, 3U, 5U, 10U, 12U, 14U, 15U, 26U, 0x80000000U, 0xffffffffU}) {
    EXPECT_EQ(rig_.command(type), VIRTIO_BLK_S_UNSUPP) << type;
  }
}

TEST_F(BlockDeviceTest, segments_are_checked_before_any_is_acted_on) {
  start_scripted(config());
  const auto good = segment(0, 8);
  for (const std::uint32_t type : {VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES}) {
    EXPECT_EQ(rig_.command(type, good + segment(8, 8, 2)), VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(rig_.command(type, good + segment(8, 8, 0x80000000)), VIRTIO_BLK_S_UNSUPP);
    EXPECT_EQ(rig_.command(type), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(rig_.command(type, filled(15, 0)), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(rig_.command(type, filled(17 * 16, 0)), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(rig_.command(type, good + segment(kSectors, 1)), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(rig_.command(type, good + segment(kSectors - 1, 2)), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(rig_.command(type, good + segment(~std::uint64_t{0}, 2)), VIRTIO_BLK_S_IOERR);
    EXPECT_EQ(rig_.command(type, good + segment(0, 0xffffffff)), VIRTIO_BLK_S_IOERR);
  }
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_DISCARD, good + segment(8, 8, 1)), VIRTIO_BLK_S_UNSUPP);
  EXPECT_THAT(script_.seen, IsEmpty());
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_DISCARD, filled(16 * 16, 0)), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, good + segment(16, 8, 1)), VIRTIO_BLK_S_OK);
  ASSERT_THAT(script_.seen, SizeIs(2));
  EXPECT_EQ(script_.seen[0].kind, Kind::kZero);
  EXPECT_EQ(script_.seen[1].kind, Kind::kZeroAndFree);
  EXPECT_EQ(script_.seen[1].offset, 16U * 512);
  EXPECT_EQ(script_.seen[1].length, 8U * 512);
}

TEST_F(BlockDeviceTest, commands_that_were_not_negotiated_are_not_supported) {
  start(config(),
        BlockRig::kAllFeatures & ~(BlockDevice::kFeatureDiscard | BlockDevice::kFeatureWriteZeroes));
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_DISCARD, segment(0, 8)), VIRTIO_BLK_S_UNSUPP);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(0, 8)), VIRTIO_BLK_S_UNSUPP);
}

TEST_F(BlockDeviceTest, zeroes_keep_their_storage_where_discard_is_off) {
  auto keeps = config();
  keeps.discard = false;
  start_scripted(keeps);
  EXPECT_EQ(rig_.driver->config_u8(kMayUnmap), 0U);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(16, 8, 1)), VIRTIO_BLK_S_OK);
  ASSERT_THAT(script_.seen, SizeIs(1));
  EXPECT_EQ(script_.seen[0].kind, Kind::kZero);
}

TEST_F(BlockDeviceTest, read_only_drive_is_not_written) {
  auto read_only = config();
  read_only.read_only = true;
  start(read_only);
  const std::string before = whole_disk();
  EXPECT_EQ(rig_.out(0, filled(512, 1)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(0, 8)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_DISCARD, segment(0, 8)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_OK);
  EXPECT_EQ(rig_.in(1, 512).data, sectors(1, 1));
  EXPECT_TRUE(whole_disk() == before);
}

TEST_F(BlockDeviceTest, what_the_host_fails_at_is_an_error_of_that_request_only) {
  start_scripted(config());
  const auto failed = counters().execute_fails.value();
  script_.results = {EIO, ENOSPC, EIO, 0, ENOSPC, EDQUOT};
  EXPECT_EQ(rig_.in(0, 512).status, VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.out(0, filled(512, 1)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_FLUSH), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_WRITE_ZEROES, segment(0, 1) + segment(8, 1)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(rig_.command(VIRTIO_BLK_T_DISCARD, segment(0, 1)), VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(counters().execute_fails.value(), failed + 5);
  EXPECT_EQ(rig_.out(0, filled(512, 1)), VIRTIO_BLK_S_OK);
}

TEST_F(BlockDeviceTest, broken_queue_needs_a_reset_and_works_after_it) {
  make_script_asynchronous();
  start_scripted(config());
  SplitRing& ring = *rig_.rings[0];
  ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable(513).submit();
  rig_.notify();
  ring.write_available_index(static_cast<std::uint16_t>(ring.available_index() + 300));
  rig_.driver->notify(0);
  rig_.run();
  EXPECT_TRUE(rig_.driver->needs_reset());
  // What was under way ends without a trace.
  const auto used = ring.used_index();
  complete_scripted(1);
  rig_.run();
  EXPECT_THAT(script_.pending, IsEmpty());
  EXPECT_EQ(ring.used_index(), used);
  rig_.driver->notify(0);
  rig_.run();
  EXPECT_EQ(ring.used_index(), used);
  ASSERT_TRUE(rig_.driver->reset());
  rig_.start();
  complete_scripted(1);
  EXPECT_EQ(rig_.in(0, 512).status, VIRTIO_BLK_S_OK);
}

TEST_F(BlockDeviceTest, reset_waits_for_what_is_under_way_and_answers_nothing) {
  make_script_asynchronous();
  start_scripted(config());
  SplitRing& ring = *rig_.rings[0];
  for (int index = 0; index < 3; ++index) {
    ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable(513).submit();
  }
  rig_.notify();
  ASSERT_THAT(script_.pending, SizeIs(3));
  const int drains = script_.drains;
  const int cancels = script_.cancels;
  ASSERT_TRUE(rig_.driver->reset());
  EXPECT_EQ(script_.cancels, cancels + 1);
  EXPECT_EQ(script_.drains_before_cancel, drains);
  EXPECT_GT(script_.drains, drains);
  EXPECT_THAT(script_.pending, IsEmpty());
  EXPECT_EQ(ring.used_index(), 0U);
}

TEST_F(BlockDeviceTest, stopped_queue_gives_back_what_is_under_way) {
  make_script_asynchronous();
  start_scripted(config());
  SplitRing& ring = *rig_.rings[0];
  ring.chain().readable(header(VIRTIO_BLK_T_OUT, 0)).readable(filled(512, 1)).writable(1).submit();
  // Of more than one step.
  ring.chain()
      .readable(header(VIRTIO_BLK_T_WRITE_ZEROES, 0))
      .readable(segment(0, 1) + segment(8, 1))
      .writable(1)
      .submit();
  rig_.notify();
  const int cancels = script_.cancels;
  rig_.driver->stop_queue(0);
  EXPECT_EQ(script_.cancels, cancels) << "these are answered";
  EXPECT_THAT(ring.collect_all(), SizeIs(2));
  EXPECT_THAT(script_.pending, IsEmpty());
  rig_.driver->notify(0);
  rig_.run();
  EXPECT_EQ(ring.used_index(), 2U);
}

TEST_F(BlockDeviceTest, completions_are_shown_as_they_come) {
  make_script_asynchronous();
  start_scripted(config());
  SplitRing& ring = *rig_.rings[0];
  for (int index = 0; index < 5; ++index) {
    ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable(513).submit();
  }
  rig_.notify();
  EXPECT_EQ(ring.used_index(), 0U);
  complete_scripted(2);
  rig_.run();
  EXPECT_EQ(ring.used_index(), 2U);
  complete_scripted(3);
  rig_.run();
  EXPECT_THAT(ring.collect_all(), SizeIs(5));
}

TEST_F(BlockDeviceTest, what_is_under_way_of_all_queues_is_bounded) {
  auto two = config();
  two.queue_count = 2;
  auto& scripts = scripts_;
  std::vector<std::unique_ptr<IoEngine>> engines;
  for (auto& script : scripts) {
    script.ready = std::move(*make_eventfd());
    engines.push_back(std::make_unique<ScriptedEngine>(script));
  }
  ASSERT_TRUE(rig_.make(two, std::move(engines))) << rig_.error;
  rig_.start(BlockRig::kAllFeatures, 2);
  const auto complete = [&](std::size_t queue, std::uint64_t count) {
    ASSERT_EQ(::write(scripts.at(queue).ready.get(), &count, sizeof(count)), 8);
    rig_.run();
  };
  const auto submit = [&](std::size_t queue, std::uint32_t type, std::uint32_t bytes, int count) {
    for (int index = 0; index < count; ++index) {
      auto chain = rig_.rings.at(queue)->chain();
      chain.readable(header(type, 0));
      if (bytes != 0) {
        chain.writable_at(0x800000, bytes);
      }
      chain.writable(1).submit();
    }
    rig_.notify(static_cast<std::uint16_t>(queue));
  };
  constexpr std::size_t kMost = BlockDevice::kMaxUnderWay >> 20;
  submit(0, VIRTIO_BLK_T_IN, 1U << 20, 40);
  submit(1, VIRTIO_BLK_T_IN, 512, 3);
  EXPECT_THAT(scripts[0].pending, SizeIs(kMost));
  EXPECT_THAT(scripts[1].pending, IsEmpty());
  // A doorbell does not get around it.
  rig_.driver->notify(1);
  rig_.run();
  EXPECT_THAT(scripts[1].pending, IsEmpty());
  // As soon as one is over others go on, of all queues.
  complete(0, 1);
  complete(0, 1);
  EXPECT_EQ(rig_.rings[0]->used_index(), 2U);
  EXPECT_THAT(scripts[1].pending, SizeIs(3));
  EXPECT_LE(scripts[0].pending.size(), kMost);
  for (int round = 0; round < 40; ++round) {
    complete(0, 1);
    complete(1, 1);
  }
  EXPECT_EQ(rig_.rings[0]->used_index(), 40U);
  EXPECT_EQ(rig_.rings[1]->used_index(), 3U);
  // Of what has no data, too.
  submit(0, VIRTIO_BLK_T_FLUSH, 0, 40);
  EXPECT_THAT(scripts[0].pending, SizeIs(BlockDevice::kMaxUnderWay / BlockDevice::kFlushCost));
  ASSERT_TRUE(rig_.driver->reset());
  EXPECT_THAT(scripts[0].pending, IsEmpty());
  rig_.start(BlockRig::kAllFeatures, 2);
  submit(0, VIRTIO_BLK_T_IN, 1U << 20, 40);
  EXPECT_THAT(scripts[0].pending, SizeIs(kMost)) << "what a reset ended is forgotten";
}

// Nothing ever comes from this pipe: who waits for it waits for ever.
TEST(UringEngineTest, what_waits_for_ever_can_be_cancelled) {
  if (!has_uring()) {
    GTEST_SKIP() << "NOT TESTED HERE: the host refuses io_uring";
  }
  std::array<int, 2> fds{};
  ASSERT_EQ(::pipe2(fds.data(), O_CLOEXEC), 0);
  const UniqueFd reader(fds[0]);
  UniqueFd writer(fds[1]);
  const auto engine = std::move(*UringEngine::create(reader.get(), 8));
  std::array<std::byte, 64> memory{};
  std::array<iovec, 3> buffers{};
  for (std::uint32_t token = 0; token < buffers.size(); ++token) {
    buffers.at(token) = {memory.data(), memory.size()};
    IoOperation read;
    read.length = memory.size();
    read.buffers = std::span(buffers).subspan(token, 1);
    EXPECT_FALSE(engine->submit(token, read));
  }
  engine->kick();
  EXPECT_FALSE(engine->reap());
  engine->cancel();
  std::size_t over = 0;
  for (pollfd ready{.fd = engine->completion_fd(), .events = POLLIN, .revents = 0};
       over < buffers.size() && ::poll(&ready, 1, 10'000) == 1;) {
    while (const auto completion = engine->reap()) {
      EXPECT_EQ(completion->result.os_errno, ECANCELED);
      ++over;
    }
  }
  EXPECT_EQ(over, buffers.size());
  writer.reset();  // so that all are over also where the above failed
  engine->drain();
  EXPECT_FALSE(engine->reap());
}

TEST_F(BlockDeviceTest, one_round_moves_a_bounded_number_of_bytes) {
  start_scripted(config(), BlockRig::kAllFeatures, kTestClock);
  SplitRing& ring = *rig_.rings[0];
  for (int index = 0; index < 12; ++index) {
    ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable_at(0x800000, 1U << 20).writable(1).submit();
  }
  {
    const MutexLock lock(rig_.device->mutex());
    rig_.device->process();
  }
  EXPECT_EQ(ring.used_index(), BlockDevice::kCostPerRound >> 20);
  // The rest follows without a doorbell.
  rig_.run();
  EXPECT_EQ(ring.used_index(), 12U);
}

TEST_F(BlockDeviceTest, queues_share_what_a_round_may_cost) {
  auto many = config();
  many.queue_count = 4;
  start_scripted(many, BlockRig::kAllFeatures, kTestClock);
  for (const auto& ring : rig_.rings) {
    for (int index = 0; index < 4; ++index) {
      ring->chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable_at(0x800000, 1U << 20).writable(1).submit();
    }
  }
  process_once();
  EXPECT_THAT(script_.seen, SizeIs(BlockDevice::kCostPerRound >> 20));
  rig_.run();
  EXPECT_THAT(script_.seen, SizeIs(16));
  for (const auto& ring : rig_.rings) {
    EXPECT_EQ(ring->used_index(), 4U);
  }
}

TEST_F(BlockDeviceTest, commands_without_data_cost_a_round_something) {
  make_image(1U << 20);
  std::filesystem::resize_file(dir_.file("disk"), 1U << 30);
  start_scripted(config(), BlockRig::kAllFeatures, kTestClock);
  SplitRing& ring = *rig_.rings[0];
  // How many of 200 a round does; then the others.
  const auto in_a_round = [&](const std::vector<std::byte>& request) {
    for (int count = 0; count < 200; ++count) {
      ring.chain().readable(request).writable(21).indirect().submit();
    }
    const auto before = ring.used_index();
    process_once();
    const auto done = static_cast<std::uint16_t>(ring.used_index() - before);
    rig_.run();
    EXPECT_THAT(ring.collect_all(), SizeIs(200));
    return done;
  };
  EXPECT_EQ(in_a_round(header(VIRTIO_BLK_T_FLUSH, 0)), 4U);
  EXPECT_EQ(in_a_round(header(VIRTIO_BLK_T_GET_ID, 0)), 128U);
  EXPECT_EQ(in_a_round(header(VIRTIO_BLK_T_IN, kSectors << 20)), 128U) << "which is refused";
  EXPECT_EQ(in_a_round(header(2, 0)), 128U) << "which is not supported";
  EXPECT_EQ(in_a_round(filled(3, 0)), 128U) << "which has no header";
  EXPECT_EQ(in_a_round(header(VIRTIO_BLK_T_DISCARD, 0) + segment(0, 1)), 128U);
  EXPECT_EQ(in_a_round(header(VIRTIO_BLK_T_WRITE_ZEROES, 0) + segment(0, 2048)), 4U);
  auto all = header(VIRTIO_BLK_T_DISCARD, 0);
  for (std::uint32_t index = 0; index < BlockDevice::kMaxDiscardSegments; ++index) {
    all = all + segment(0, BlockDevice::kMaxDiscardSectors);
  }
  EXPECT_EQ(in_a_round(all), 1U);
  rig_.driver->write_config_u8(kWriteback, 0);
  EXPECT_EQ(in_a_round(header(VIRTIO_BLK_T_OUT, 0) + filled(512, 1)), 4U) << "which is to be durable";
}

TEST_F(BlockDeviceTest, round_ends_when_its_time_is_over) {
  start_scripted(config(), BlockRig::kAllFeatures, kTestClock);
  script_.takes = std::chrono::nanoseconds(BlockDevice::kTimePerRound) / 4;
  SplitRing& ring = *rig_.rings[0];
  for (int count = 0; count < 10; ++count) {
    ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable(513).submit();
  }
  process_once();
  EXPECT_EQ(ring.used_index(), 4U);
  process_once();
  EXPECT_EQ(ring.used_index(), 8U);
  rig_.run();
  EXPECT_EQ(ring.used_index(), 10U);
  // What takes longer than a round has one of its own.
  script_.takes = BlockDevice::kTimePerRound * 3;
  for (int count = 0; count < 3; ++count) {
    ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable(513).submit();
  }
  process_once();
  EXPECT_EQ(ring.used_index(), 11U);
  rig_.run();
  EXPECT_EQ(ring.used_index(), 13U);
}

TEST_F(BlockDeviceTest, usual_requests_as_many_as_the_queue_has_are_one_round) {
  start_scripted(config());
  SplitRing& ring = *rig_.rings[0];
  for (int count = 0; count < 80; ++count) {
    ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable_at(0x800000, 4096).writable(1).submit();
  }
  process_once();
  EXPECT_EQ(ring.used_index(), 80U);
}

TEST_F(BlockDeviceTest, doorbell_before_activation_does_nothing) {
  ASSERT_TRUE(rig_.make(config()));
  rig_.driver->notify(0);
  rig_.run();
  rig_.start();
  EXPECT_EQ(rig_.in(0, 512).status, VIRTIO_BLK_S_OK);
}

TEST_F(BlockDeviceTest, queue_in_no_memory_is_counted) {
  ASSERT_TRUE(rig_.make(config()));
  const auto failures = counters().activate_fails.value();
  ASSERT_TRUE(rig_.driver->negotiate(BlockRig::kAllFeatures));
  ASSERT_TRUE(rig_.driver->set_up_queue(0, RingLayout::at(std::uint64_t{1} << 40, 64)));
  rig_.driver->driver_ok();
  EXPECT_TRUE(rig_.driver->needs_reset());
  EXPECT_EQ(counters().activate_fails.value(), failures + 1);
}

TEST_F(BlockDeviceTest, state_is_taken_when_nothing_is_under_way) {
  make_script_asynchronous();
  start_scripted(config());
  rig_.driver->write_config_u8(kWriteback, 0);
  SplitRing& ring = *rig_.rings[0];
  ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable(513).submit();
  rig_.notify();
  const MutexLock lock(rig_.device->mutex());
  const auto state = rig_.device->state();
  EXPECT_EQ(ring.used_index(), 1U);
  EXPECT_EQ(state.features, rig_.features);
  EXPECT_FALSE(state.writeback);
  ASSERT_THAT(state.queues, SizeIs(1));
  ASSERT_TRUE(state.queues[0]);
  EXPECT_EQ(state.queues[0]->next_available, 1U);
  EXPECT_EQ(state.queues[0]->next_used, 1U);
}

TEST_P(EitherEngineTest, restored_device_goes_on_in_the_middle_of_its_rings) {
  BlockDeviceConfig two = config();
  two.queue_count = 2;
  ASSERT_TRUE(rig_.make(two)) << rig_.error;
  rig_.start(BlockRig::kAllFeatures, 2, 16);
  rig_.driver->write_config_u8(kWriteback, 0);
  for (std::uint64_t sector = 0; sector < 13; ++sector) {
    EXPECT_EQ(rig_.in(sector, 512).data, sectors(sector, 1));
  }
  EXPECT_EQ(rig_.out(20, filled(512, 5), 1), VIRTIO_BLK_S_OK);
  // One that nobody has told the device of, and one of which the driver has not been told for sure.
  rig_.rings[0]->chain().readable(header(VIRTIO_BLK_T_IN, 20)).writable(513).submit();
  const int interrupts = rig_.line.count();
  rig_.move_to(two);
  EXPECT_EQ(rig_.line.count(), interrupts + 1) << "what was not acknowledged is told once more";
  EXPECT_EQ(rig_.driver->config_u8(kWriteback), 0);
  rig_.run();
  const auto answers = rig_.collect();
  ASSERT_THAT(answers, SizeIs(1));
  EXPECT_EQ(answers[0].data, filled(512, 5));
  for (std::uint64_t sector = 0; sector < 40; ++sector) {
    EXPECT_EQ(rig_.in(sector + 100, 512, sector % 2).data, sectors(sector + 100, 1));
  }
}

TEST_F(BlockDeviceTest, state_that_cannot_be_is_refused_and_changes_nothing) {
  start(config());
  const MutexLock lock(rig_.device->mutex());
  const BlockDeviceState good = rig_.device->state();
  BlockRig second;
  auto other = config();
  other.lock = false;
  other.discard = false;
  ASSERT_TRUE(second.make(other));
  const auto refusal = [&second](const BlockDeviceState& state) {
    const auto restored = second.device->restore(state);
    return restored ? std::string() : restored.error().message();
  };
  EXPECT_THAT(refusal(good), HasSubstr("drive rootfs: restore: its driver uses features"));
  BlockDeviceState bad = good;
  bad.features = kFeatureVersion1;
  bad.queues.emplace_back();
  EXPECT_THAT(refusal(bad), HasSubstr("2 queues"));
  bad.queues.pop_back();
  bad.rate_limiter.ops = TokenBucketState{.config = {.size = 1, .refill_time_ms = 1}, .tokens = UINT64_MAX};
  EXPECT_THAT(refusal(bad), HasSubstr("restore"));
  EXPECT_EQ(second.device->state().features, 0U);
  bad.rate_limiter = {};
  EXPECT_EQ(refusal(bad), "");
  EXPECT_EQ(second.device->state().features, kFeatureVersion1);
}

// Not even where the host is at work for it still: that chain never comes back.
TEST_F(BlockDeviceTest, device_that_needs_a_reset_is_saved_without_its_queues) {
  make_script_asynchronous();
  start_scripted(config());
  SplitRing& ring = *rig_.rings[0];
  ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable(513).submit();
  rig_.notify();
  ASSERT_THAT(script_.pending, SizeIs(1));
  ring.write_available_index(1000);
  rig_.driver->notify(0);
  rig_.run();
  ASSERT_TRUE(rig_.driver->needs_reset());
  rig_.move_to(config());
  EXPECT_TRUE(rig_.driver->needs_reset());
  rig_.start();
  EXPECT_EQ(rig_.in(5, 512).data, sectors(5, 1));
}

// --- the rate limiter ---

class LimitedBlockDeviceTest : public BlockDeviceTest {
 protected:
  void pass(std::chrono::milliseconds time) {
    g_now_ns += static_cast<std::uint64_t>(std::chrono::nanoseconds(time).count());
    rig_.registrar.advance(time);
    rig_.run();
  }
  void submit_reads(int count) {
    for (int index = 0; index < count; ++index) {
      rig_.rings[0]->chain().readable(header(VIRTIO_BLK_T_IN, 0)).writable(4097).submit();
    }
    rig_.notify();
  }
};

TEST_F(LimitedBlockDeviceTest, operations_beyond_the_limit_wait_for_the_refill) {
  auto limited = config();
  limited.rate_limiter.ops = TokenBucketConfig{.size = 2, .refill_time_ms = 100, .one_time_burst = 0};
  start_scripted(limited, BlockRig::kAllFeatures, kTestClock);
  const auto throttled = counters().rate_limiter_throttled_events.value();
  submit_reads(5);
  SplitRing& ring = *rig_.rings[0];
  EXPECT_EQ(ring.used_index(), 2U);
  EXPECT_EQ(counters().rate_limiter_throttled_events.value(), throttled + 1);
  // A doorbell does not get around it, nor is it counted again.
  rig_.driver->notify(0);
  rig_.run();
  EXPECT_EQ(ring.used_index(), 2U);
  EXPECT_EQ(counters().rate_limiter_throttled_events.value(), throttled + 1);
  EXPECT_EQ(rig_.registrar.running_timers(), 1U);
  pass(std::chrono::milliseconds(50));
  EXPECT_EQ(ring.used_index(), 3U);
  pass(std::chrono::milliseconds(50));
  pass(std::chrono::milliseconds(50));
  EXPECT_THAT(ring.collect_all(), SizeIs(5));
  EXPECT_EQ(rig_.registrar.running_timers(), 0U);
}

TEST_F(LimitedBlockDeviceTest, requests_that_are_refused_or_ask_for_the_id_are_limited) {
  auto limited = config();
  limited.rate_limiter.ops = TokenBucketConfig{.size = 4, .refill_time_ms = 100, .one_time_burst = 0};
  start_scripted(limited, BlockRig::kAllFeatures, kTestClock);
  const auto invalid = counters().invalid_reqs_count.value();
  SplitRing& ring = *rig_.rings[0];
  for (int round = 0; round < 2; ++round) {
    ring.chain().readable(header(VIRTIO_BLK_T_GET_ID, 0)).writable(21).submit();
    ring.chain().readable(header(2, 0)).writable(1).submit();
    ring.chain().readable(filled(3, 0)).writable(1).submit();
    ring.chain().readable(header(VIRTIO_BLK_T_IN, 0)).submit();  // no byte for the status
  }
  rig_.notify();
  EXPECT_EQ(ring.used_index(), 4U);
  EXPECT_EQ(counters().invalid_reqs_count.value(), invalid + 3);
  pass(std::chrono::milliseconds(50));
  EXPECT_EQ(ring.used_index(), 6U);
  pass(std::chrono::milliseconds(50));
  EXPECT_EQ(ring.used_index(), 8U);
  EXPECT_EQ(counters().invalid_reqs_count.value(), invalid + 6) << "each once, however long it waited";
}

TEST_F(LimitedBlockDeviceTest, answers_without_data_cost_the_bytes_that_they_fill) {
  auto limited = config();
  limited.rate_limiter.bandwidth =
      TokenBucketConfig{.size = 8192, .refill_time_ms = 100, .one_time_burst = 0};
  start_scripted(limited, BlockRig::kAllFeatures, kTestClock);
  SplitRing& ring = *rig_.rings[0];
  for (const std::uint32_t type : {VIRTIO_BLK_T_GET_ID, 2U, 2U}) {
    ring.chain().readable(header(type, 0)).writable(4097).submit();
  }
  rig_.notify();
  EXPECT_EQ(ring.used_index(), 2U);
}

TEST_F(LimitedBlockDeviceTest, bytes_beyond_the_limit_wait_and_an_update_sets_them_free) {
  auto limited = config();
  limited.rate_limiter.bandwidth =
      TokenBucketConfig{.size = 8192, .refill_time_ms = 1000, .one_time_burst = 0};
  start_scripted(limited, BlockRig::kAllFeatures, kTestClock);
  submit_reads(6);
  SplitRing& ring = *rig_.rings[0];
  EXPECT_EQ(ring.used_index(), 2U);
  {
    const MutexLock lock(rig_.device->mutex());
    ASSERT_TRUE(rig_.device->update_rate_limiter({.bandwidth = TokenBucketConfig{}, .ops = std::nullopt}));
  }
  rig_.run();
  EXPECT_EQ(ring.used_index(), 6U);
}

TEST_F(LimitedBlockDeviceTest, reset_forgets_what_was_held_back) {
  auto limited = config();
  limited.rate_limiter.ops = TokenBucketConfig{.size = 1, .refill_time_ms = 100, .one_time_burst = 0};
  start_scripted(limited, BlockRig::kAllFeatures, kTestClock);
  submit_reads(2);
  ASSERT_TRUE(rig_.driver->reset());
  pass(std::chrono::milliseconds(100));
  EXPECT_EQ(rig_.rings[0]->used_index(), 1U);
  rig_.start();
  EXPECT_EQ(rig_.in(0, 512).status, VIRTIO_BLK_S_OK);
}

// --- configuration ---

TEST_F(BlockDeviceTest, contradictory_configuration_names_the_drive) {
  const auto error_of = [this](auto change) {
    BlockDeviceConfig changed = config();
    change(changed);
    const auto checked = changed.validate();
    return checked ? std::string() : checked.error().message();
  };
  EXPECT_EQ(error_of([](auto&) {}), "");
  EXPECT_THAT(error_of([](auto& c) { c.id = "a-b"; }), HasSubstr("\"a-b\""));
  EXPECT_THAT(error_of([](auto& c) { c.path.clear(); }), HasSubstr("drive rootfs"));
  EXPECT_THAT(error_of([](auto& c) { c.queue_count = 0; }), HasSubstr("drive rootfs"));
  EXPECT_THAT(error_of([](auto& c) { c.queue_count = 17; }), HasSubstr("17"));
  EXPECT_THAT(error_of([](auto& c) { c.partuuid = "x"; }), HasSubstr("partuuid"));
  EXPECT_THAT(error_of([](auto& c) {
                c.overlay.emplace();
                c.read_only = true;
              }),
              HasSubstr("read-only"));
  EXPECT_THAT(error_of([](auto& c) { c.overlay = BlockOverlayConfig{""}; }), HasSubstr("overlay"));
  EXPECT_THAT(error_of([](auto& c) { c.overlay = BlockOverlayConfig{c.path}; }), HasSubstr("same file"));
  auto slow = config();
  slow.rate_limiter.ops =
      TokenBucketConfig{.size = 1, .refill_time_ms = ~std::uint64_t{0}, .one_time_burst = 0};
  EXPECT_FALSE(rig_.make(slow));
  EXPECT_THAT(rig_.error, HasSubstr("drive rootfs"));
}

TEST_F(BlockDeviceTest, failing_event_loop_is_an_error_with_the_drives_name) {
  rig_.registrar.fail_next(Error(ErrorCode::kIo, "no timers"));
  EXPECT_FALSE(rig_.make(config()));
  EXPECT_THAT(rig_.error, HasSubstr("drive rootfs: no timers"));
}

}  // namespace
}  // namespace mayfly::testing
