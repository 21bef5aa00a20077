// The fake against a window that only records what was asked, and answers as virtio 1.2, section 4.2.2, has
// it written out by hand here. No device of ours is involved.
#include "support/virtio_driver/mmio_driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

namespace mayfly::testing {
namespace {

using ::testing::ElementsAre;

std::string hex(std::uint64_t value) {
  std::string digits;
  do {
    digits.insert(digits.begin(), "0123456789abcdef"[value % 16]);
    value /= 16;
  } while (value != 0);
  return digits;
}

// Registers answer what was queued for them, the last answer for ever. Status and QueueReady read back.
class ScriptedWindow final : public MmioWindow {
 public:
  std::uint64_t read(std::uint64_t offset, unsigned width) override {
    log.push_back("R" + std::to_string(width) + " " + hex(offset));
    auto& script = answers[offset];
    if (script.empty()) {
      return 0;
    }
    const std::uint64_t value = script.front();
    if (script.size() > 1) {
      script.pop_front();
    }
    return value;
  }

  void write(std::uint64_t offset, unsigned width, std::uint64_t value) override {
    log.push_back("W" + std::to_string(width) + " " + hex(offset) + " " + hex(value));
    if (offset == 0x70 || offset == 0x44) {
      answers[offset] = {value & ~refused_status};
    }
  }

  std::vector<std::string> log;
  std::map<std::uint64_t, std::deque<std::uint64_t>> answers;
  std::uint64_t refused_status = 0;
};

class MmioDriverTest : public ::testing::Test {
 protected:
  ScriptedWindow window_;
  MmioDriver driver_{window_};
};

TEST_F(MmioDriverTest, probe_of_a_device_reads_its_identity_in_order) {
  window_.answers = {{0, {0x74726976}}, {4, {2}}, {8, {1}}, {0xc, {0x1af4}}};
  const auto found = driver_.probe();
  EXPECT_EQ(found.presence, MmioDriver::Presence::kDevice);
  EXPECT_EQ(found.device_id, 1u);
  EXPECT_EQ(found.vendor_id, 0x1af4u);
  EXPECT_THAT(window_.log, ElementsAre("R4 0", "R4 4", "R4 8", "R4 c"));
}

TEST_F(MmioDriverTest, probe_goes_no_further_than_what_is_wrong) {
  window_.answers = {{0, {0x76697274}}, {4, {2}}, {8, {1}}};
  EXPECT_EQ(driver_.probe().presence, MmioDriver::Presence::kNotVirtio);
  EXPECT_THAT(window_.log, ElementsAre("R4 0"));

  window_.log.clear();
  window_.answers = {{0, {0x74726976}}, {4, {1}}, {8, {1}}};
  EXPECT_EQ(driver_.probe().presence, MmioDriver::Presence::kOtherVersion);
  EXPECT_THAT(window_.log, ElementsAre("R4 0", "R4 4"));

  window_.log.clear();
  window_.answers = {{0, {0x74726976}}, {4, {2}}, {8, {0}}};
  EXPECT_EQ(driver_.probe().presence, MmioDriver::Presence::kPlaceholder);
  EXPECT_THAT(window_.log, ElementsAre("R4 0", "R4 4", "R4 8"));
}

TEST_F(MmioDriverTest, negotiation_follows_the_six_steps) {
  window_.answers[0x10] = {0x30000041, 0x3};
  EXPECT_EQ(driver_.negotiate(0x1'2000'0001), 0x1'2000'0001u);
  EXPECT_THAT(window_.log, ElementsAre("W4 70 0", "R4 70",                                 // 1: reset
                                       "R4 70", "W4 70 1",                                 // 2
                                       "R4 70", "W4 70 3",                                 // 3
                                       "W4 14 0", "R4 10", "W4 14 1", "R4 10",             // 4: read
                                       "W4 24 0", "W4 20 20000001", "W4 24 1", "W4 20 1",  // 4: write
                                       "R4 70", "W4 70 b",                                 // 5
                                       "R4 70"));                                          // 6
  window_.log.clear();
  driver_.driver_ok();
  EXPECT_THAT(window_.log, ElementsAre("R4 70", "W4 70 f"));
}

TEST_F(MmioDriverTest, negotiation_takes_nothing_that_is_not_offered) {
  window_.answers[0x10] = {0x1, 0x1};
  EXPECT_EQ(driver_.negotiate(~0ULL), 0x1'0000'0001u);
}

TEST_F(MmioDriverTest, refused_features_end_in_failed) {
  window_.refused_status = 8;
  EXPECT_EQ(driver_.negotiate(1), std::nullopt);
  EXPECT_EQ(window_.log.back(), "W4 70 83");
}

TEST_F(MmioDriverTest, reset_waits_for_status_zero_and_gives_up_in_the_end) {
  EXPECT_TRUE(driver_.reset());
  class Stuck final : public MmioWindow {
   public:
    std::uint64_t read(std::uint64_t, unsigned) override { return ++reads < ready_after ? 4 : 0; }
    void write(std::uint64_t, unsigned, std::uint64_t) override {}
    int reads = 0;
    int ready_after = 1'000'000;
  } stuck;
  EXPECT_FALSE(MmioDriver(stuck).reset());
  EXPECT_FALSE(MmioDriver(stuck).negotiate(0).has_value());
  stuck.ready_after = stuck.reads + 3;
  EXPECT_TRUE(MmioDriver(stuck).reset());
}

TEST_F(MmioDriverTest, queue_set_up_follows_the_steps) {
  window_.answers[0x34] = {256};
  EXPECT_TRUE(driver_.set_up_queue(
      3, {.descriptors = 0x1'0000'2000, .available = 0x2'0000'3000, .used = 0x3'0000'4000, .size = 256}));
  EXPECT_THAT(window_.log, ElementsAre("W4 30 3", "R4 44", "R4 34", "W4 38 100",                        //
                                       "W4 80 2000", "W4 84 1", "W4 90 3000", "W4 94 2", "W4 a0 4000",  //
                                       "W4 a4 3", "W4 44 1", "R4 44"));
  window_.log.clear();
  EXPECT_FALSE(driver_.set_up_queue(3, {.size = 1})) << "it is in use";
  EXPECT_THAT(window_.log, ElementsAre("W4 30 3", "R4 44"));
  window_.log.clear();
  EXPECT_TRUE(driver_.stop_queue(3));
  EXPECT_THAT(window_.log, ElementsAre("W4 30 3", "W4 44 0", "R4 44"));
}

TEST_F(MmioDriverTest, queue_that_is_absent_or_too_small_is_not_set_up) {
  EXPECT_EQ(driver_.max_queue_size(9), 0u);
  EXPECT_THAT(window_.log, ElementsAre("W4 30 9", "R4 34"));
  EXPECT_FALSE(driver_.set_up_queue(9, {.size = 1}));
  window_.answers[0x34] = {128};
  window_.log.clear();
  EXPECT_FALSE(driver_.set_up_queue(0, {.size = 256}));
  EXPECT_THAT(window_.log, ElementsAre("W4 30 0", "R4 44", "R4 34"));
}

TEST_F(MmioDriverTest, notification_writes_the_queues_index) {
  driver_.notify(5);
  EXPECT_THAT(window_.log, ElementsAre("W4 50 5"));
}

TEST_F(MmioDriverTest, interrupt_acknowledges_the_defined_bits_only) {
  window_.answers[0x60] = {0xfffffffe};
  EXPECT_EQ(driver_.handle_interrupt(), kConfigurationChangeNotification);
  EXPECT_THAT(window_.log, ElementsAre("R4 60", "W4 64 2"));
  window_.answers[0x60] = {0xf0};
  window_.log.clear();
  EXPECT_EQ(driver_.handle_interrupt(), 0u);
  EXPECT_THAT(window_.log, ElementsAre("R4 60"));
}

TEST_F(MmioDriverTest, configuration_fields_are_read_with_their_own_width) {
  window_.answers = {{0x100, {0x55667788}}, {0x104, {0x11223344}}, {0x10a, {0xabcd}}, {0x10c, {0x7f}}};
  EXPECT_EQ(driver_.config_u64(0), 0x1122334455667788u);
  EXPECT_EQ(driver_.config_u32(4), 0x11223344u);
  EXPECT_EQ(driver_.config_u16(0xa), 0xabcd);
  EXPECT_EQ(driver_.config_u8(0xc), 0x7f);
  driver_.write_config_u8(0x20, 1);
  driver_.write_config_u16(0x22, 2);
  driver_.write_config_u32(0x24, 3);
  EXPECT_THAT(window_.log, ElementsAre("R4 100", "R4 104", "R4 104", "R2 10a", "R1 10c", "W1 120 1",
                                       "W2 122 2", "W4 124 3"));
}

TEST_F(MmioDriverTest, configuration_is_read_again_when_its_generation_changed) {
  window_.answers = {{0xfc, {7, 8, 8, 8}}, {0x100, {1, 2}}};
  std::uint32_t field = 0;
  EXPECT_TRUE(driver_.read_config_consistently([&] { field = driver_.config_u32(0); }));
  EXPECT_EQ(field, 2u);
  EXPECT_THAT(window_.log, ElementsAre("R4 fc", "R4 100", "R4 fc", "R4 fc", "R4 100", "R4 fc"));
}

TEST_F(MmioDriverTest, configuration_that_never_holds_still_is_given_up) {
  class Restless final : public MmioWindow {
   public:
    std::uint64_t read(std::uint64_t, unsigned) override { return ++reads; }
    void write(std::uint64_t, unsigned, std::uint64_t) override {}
    std::uint64_t reads = 0;
  } restless;
  EXPECT_FALSE(MmioDriver(restless).read_config_consistently([] {}));
}

}  // namespace
}  // namespace mayfly::testing
