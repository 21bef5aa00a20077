#include "devices/virtio/transport/mmio_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "event/event_loop.h"
#include "support/fake_event.h"
#include "support/fake_virtio_device.h"
#include "support/mmio_exerciser.h"
#include "support/mmio_window.h"
#include "support/virtio_driver/mmio_driver.h"
#include "support/virtio_driver/split_ring.h"

namespace mayfly::testing {
namespace {

using namespace device_status;  // NOLINT(google-build-using-namespace): the specification's names
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t kAll = FakeVirtioDevice::kOwnFeatures | kFeatureVersion1;
constexpr std::uint32_t kAllOnes = 0xffffffff;

GuestMemory make_memory() {
  const std::array ranges = {*GuestRange::make(GuestAddress(0), 0x100000)};
  return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
}

// A device of two queues, of up to 16 and 256 descriptors.
class MmioTransportTest : public ::testing::Test {
 protected:
  std::uint32_t read(std::uint64_t offset) { return driver_.read_register(offset); }
  void write(std::uint64_t offset, std::uint32_t value) { driver_.write_register(offset, value); }

  static RingLayout layout(std::uint16_t queue) { return RingLayout::at(0x10000 + 0x8000ULL * queue, 16); }
  void features_ok(std::uint64_t features = kAll) { ASSERT_EQ(driver_.negotiate(features), features); }
  void select(std::uint32_t queue) { write(mmio::kQueueSel, queue); }
  // As far as DRIVER_OK with both queues, and the driver's rings for them.
  void start(std::uint64_t features = kAll) {
    features_ok(features);
    rings_.clear();
    for (std::uint16_t queue = 0; queue < 2; ++queue) {
      rings_.push_back(std::make_unique<SplitRing>(
          driver_memory_, layout(queue), BufferArena(0x40000 + 0x20000ULL * queue, 0x20000),
          RingFeatures{.event_idx = (features & kFeatureEventIndex) != 0, .in_order = false}));
      ASSERT_TRUE(driver_.set_up_queue(queue, layout(queue)));
    }
    driver_.driver_ok();
    ASSERT_EQ(driver_.status(), kAcknowledge | kDriver | kFeaturesOk | kDriverOk);
  }
  // How often the device was told to look at its queues.
  int run() {
    const int before = device_.processed;
    while (registrar_.report_readable(0) != 0) {
    }
    return device_.processed - before;
  }
  void send(std::uint16_t queue) {
    rings_.at(queue)->chain().readable_at(0x1000, 1).submit();
    if (rings_.at(queue)->should_notify()) {
      driver_.notify(queue);
    }
  }
  void break_device() {
    device_.run([](VirtioTransport& on) { on.needs_reset("a test's reason"); });
  }
  void change_configuration() {
    device_.run([](VirtioTransport& on) { on.configuration_changed(); });
  }
  void use_buffers() {
    device_.run([](VirtioTransport& on) { on.used_buffers(); });
  }
  void take_steps(std::uint32_t up_to) {
    for (const std::uint32_t bit : {kAcknowledge, kDriver, kFeaturesOk, kDriverOk}) {
      if ((up_to & bit) == 0) {
        return;
      }
      driver_.add_status(bit);
    }
  }

  GuestMemory memory_ = make_memory();
  GuestDriverMemory driver_memory_{memory_};
  CountedLine line_;
  ManualRegistrar registrar_;
  FakeVirtioDevice device_;
  std::unique_ptr<MmioTransport> transport_ =
      std::move(*MmioTransport::create(device_, memory_, line_, registrar_));
  BusWindow window_{*transport_};
  MmioDriver driver_{window_};
  std::vector<std::unique_ptr<SplitRing>> rings_;
};

// --- Registers ---

TEST_F(MmioTransportTest, identity_registers_are_the_specifications) {
  EXPECT_EQ(read(0x000), 0x74726976U);
  EXPECT_EQ(read(0x004), 2U);
  EXPECT_EQ(read(0x008), FakeVirtioDevice::kType);
  EXPECT_EQ(read(0x00c), 0x594c464dU);
  EXPECT_EQ(driver_.probe().presence, MmioDriver::Presence::kDevice);
}

TEST_F(MmioTransportTest, fresh_device_has_status_0_no_interrupt_and_no_queue_ready) {
  EXPECT_EQ(read(mmio::kStatus), 0U);
  EXPECT_EQ(read(mmio::kInterruptStatus), 0U);
  EXPECT_EQ(read(mmio::kConfigGeneration), 0U);
  for (const std::uint32_t queue : {0U, 1U}) {
    select(queue);
    EXPECT_EQ(read(mmio::kQueueReady), 0U);
  }
  EXPECT_EQ(line_.count(), 0);
}

TEST_F(MmioTransportTest, write_only_and_unknown_registers_read_as_all_ones) {
  for (std::uint64_t offset = 0; offset < mmio::kConfig; offset += 4) {
    switch (offset) {
      case mmio::kMagicValue:
      case mmio::kVersion:
      case mmio::kDeviceId:
      case mmio::kVendorId:
      case mmio::kDeviceFeatures:
      case mmio::kQueueNumMax:
      case mmio::kQueueReady:
      case mmio::kInterruptStatus:
      case mmio::kStatus:
      case mmio::kConfigGeneration:
        EXPECT_NE(read(offset), kAllOnes) << offset;
        break;
      default:
        EXPECT_EQ(read(offset), kAllOnes) << offset;
    }
  }
}

TEST_F(MmioTransportTest, shared_memory_region_that_is_not_there_is_minus_1_long) {
  write(mmio::kShmSel, 0);
  for (const std::uint64_t offset :
       {mmio::kShmLenLow, mmio::kShmLenHigh, mmio::kShmBaseLow, mmio::kShmBaseHigh}) {
    EXPECT_EQ(read(offset), kAllOnes);
  }
}

TEST_F(MmioTransportTest, read_only_and_unknown_registers_are_not_written) {
  start();
  const MmioTransportState before = transport_->state();
  for (std::uint64_t offset = 0; offset < mmio::kConfig; offset += 4) {
    const bool writable = offset == mmio::kDeviceFeaturesSel || offset == mmio::kDriverFeaturesSel ||
                          offset == mmio::kQueueSel || offset == mmio::kStatus ||
                          offset == mmio::kQueueNotify;
    if (!writable) {
      write(offset, 0x5a5a5a5a);
    }
  }
  EXPECT_EQ(transport_->state(), before);
  EXPECT_EQ(read(mmio::kMagicValue), 0x74726976U);
}

TEST_F(MmioTransportTest, control_registers_answer_aligned_words_only) {
  for (const unsigned width : {1U, 2U, 8U}) {
    const std::uint64_t ones = width == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * width)) - 1;
    for (std::uint64_t offset = 0; offset + width <= mmio::kConfig; ++offset) {
      ASSERT_EQ(window_.read(offset, width), ones) << offset << "/" << width;
    }
  }
  for (std::uint64_t offset = 0; offset < mmio::kConfig; ++offset) {
    if (offset % 4 != 0) {
      ASSERT_EQ(window_.read(offset, 4), kAllOnes) << offset;
    }
  }
}

TEST_F(MmioTransportTest, control_registers_take_aligned_words_only) {
  const MmioTransportState before = transport_->state();
  for (const unsigned width : {1U, 2U, 8U}) {
    for (std::uint64_t offset = 0; offset + width <= mmio::kConfig; ++offset) {
      window_.write(offset, width, 1);
    }
  }
  for (std::uint64_t offset = 0; offset < mmio::kConfig; ++offset) {
    if (offset % 4 != 0) {
      window_.write(offset, 4, 1);
    }
  }
  EXPECT_EQ(transport_->state(), before);
  EXPECT_EQ(run(), 0);  // no doorbell either
}

TEST_F(MmioTransportTest, features_are_offered_in_words_with_version_1_and_none_past_bit_63) {
  EXPECT_EQ(driver_.device_features(), kAll);
  EXPECT_NE(driver_.device_features() & kFeatureVersion1, 0U);
  for (const std::uint32_t word : {2U, 3U, 32U, 0x80000000U, kAllOnes}) {
    write(mmio::kDeviceFeaturesSel, word);
    EXPECT_EQ(read(mmio::kDeviceFeatures), 0U) << word;
  }
}

// --- Status: 2.1, 3.1.1 ---

TEST_F(MmioTransportTest, bits_are_set_in_the_order_of_the_initialisation) {
  write(mmio::kStatus, kDriver);
  EXPECT_EQ(driver_.status(), 0U);
  write(mmio::kStatus, kAcknowledge);
  EXPECT_EQ(driver_.status(), kAcknowledge);
  write(mmio::kStatus, kAcknowledge | kFeaturesOk | kDriverOk);
  EXPECT_EQ(driver_.status(), kAcknowledge);
  write(mmio::kStatus, kAcknowledge | kDriver);
  write(mmio::kStatus, kAcknowledge | kDriver | kDriverOk);
  EXPECT_EQ(driver_.status(), kAcknowledge | kDriver);
  EXPECT_EQ(device_.activations, 0);
}

TEST_F(MmioTransportTest, unknown_bits_and_device_needs_reset_are_not_set_by_the_driver) {
  write(mmio::kStatus, kAcknowledge | 16 | 32 | kNeedsReset | 0xffffff00);
  EXPECT_EQ(driver_.status(), kAcknowledge);
}

TEST_F(MmioTransportTest, bits_are_cleared_by_a_reset_only) {
  start();
  const std::uint32_t all = driver_.status();
  for (const std::uint32_t value :
       {kAcknowledge, kAcknowledge | kDriver, all & ~kAcknowledge, all & ~kFeaturesOk, kDriverOk}) {
    write(mmio::kStatus, value);
    EXPECT_EQ(driver_.status(), all) << value;
  }
  EXPECT_EQ(device_.resets, 1);  // that of the negotiation
  write(mmio::kStatus, 0);
  EXPECT_EQ(driver_.status(), 0U);
}

TEST_F(MmioTransportTest, features_that_were_offered_are_accepted_in_every_combination) {
  for (std::uint64_t choice = 0; choice < 16; ++choice) {
    const std::uint64_t features =
        (choice & 1) | (choice & 2) << 1 | (choice & 4) << 26 | (choice & 8) << 26 | kFeatureVersion1;
    ASSERT_EQ(features & ~kAll, 0U);
    // Again and again, and after a reset: 2.2.2.
    EXPECT_EQ(driver_.negotiate(features), features);
    EXPECT_EQ(driver_.negotiate(features), features);
    EXPECT_EQ(device_.accepted.back(), features);
  }
}

TEST_F(MmioTransportTest, feature_that_was_not_offered_refuses_features_ok) {
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t feature = std::uint64_t{1} << bit;
    if ((feature & kAll) != 0) {
      continue;
    }
    ASSERT_TRUE(driver_.reset());
    driver_.add_status(kAcknowledge);
    driver_.add_status(kDriver);
    driver_.write_driver_features(kAll | feature);
    driver_.add_status(kFeaturesOk);
    ASSERT_EQ(driver_.status(), kAcknowledge | kDriver) << bit;
    // It may think better of it.
    driver_.write_driver_features(kAll);
    driver_.add_status(kFeaturesOk);
    ASSERT_EQ(driver_.status(), kAcknowledge | kDriver | kFeaturesOk) << bit;
  }
}

TEST_F(MmioTransportTest, feature_past_bit_63_refuses_features_ok_until_a_reset) {
  take_steps(kAcknowledge | kDriver);
  driver_.write_driver_features(kAll);
  write(mmio::kDriverFeaturesSel, 2);
  write(mmio::kDriverFeatures, 0);  // none: nothing wrong with that
  write(mmio::kDriverFeaturesSel, 0x40000000);
  write(mmio::kDriverFeatures, 1);
  driver_.add_status(kFeaturesOk);
  EXPECT_EQ(driver_.status(), kAcknowledge | kDriver);
  features_ok();
}

TEST_F(MmioTransportTest, driver_without_version_1_is_refused) {
  take_steps(kAcknowledge | kDriver);
  driver_.write_driver_features(FakeVirtioDevice::kOwnFeatures);
  driver_.add_status(kFeaturesOk);
  EXPECT_EQ(driver_.status(), kAcknowledge | kDriver);
  EXPECT_THAT(device_.accepted, IsEmpty());
  driver_.add_status(kDriverOk);
  EXPECT_EQ(driver_.status(), kAcknowledge | kDriver);
}

TEST_F(MmioTransportTest, features_are_settled_between_driver_and_features_ok_only) {
  driver_.write_driver_features(kAll);  // too early
  take_steps(kAcknowledge);
  driver_.write_driver_features(kAll);
  EXPECT_EQ(transport_->state().driver_features, 0U);
  driver_.add_status(kDriver);
  driver_.write_driver_features(kFeatureVersion1);
  driver_.add_status(kFeaturesOk);
  driver_.write_driver_features(kAll);  // too late
  EXPECT_EQ(transport_->state().driver_features, kFeatureVersion1);
  EXPECT_THAT(device_.accepted, ElementsAre(kFeatureVersion1));
  driver_.driver_ok();
  ASSERT_TRUE(device_.active);
  EXPECT_EQ(device_.active->features, kFeatureVersion1);
}

TEST_F(MmioTransportTest, failed_is_kept_and_stops_the_initialisation) {
  take_steps(kAcknowledge | kDriver);
  driver_.write_driver_features(kAll);
  driver_.add_status(kFailed);
  driver_.add_status(kFeaturesOk);
  EXPECT_EQ(driver_.status(), kAcknowledge | kDriver | kFailed);
  driver_.write_driver_features(0);
  EXPECT_EQ(transport_->state().driver_features, kAll);
  EXPECT_TRUE(driver_.reset());
  start();
}

TEST_F(MmioTransportTest, all_steps_in_one_write_are_steps_in_order) {
  take_steps(kAcknowledge | kDriver);
  driver_.write_driver_features(kAll);
  write(mmio::kStatus, kAcknowledge | kDriver | kFeaturesOk | kDriverOk);
  EXPECT_EQ(driver_.status(), kAcknowledge | kDriver | kFeaturesOk | kDriverOk);
  EXPECT_EQ(device_.activations, 1);
}

TEST_F(MmioTransportTest, driver_ok_twice_activates_once) {
  start();
  driver_.driver_ok();
  write(mmio::kStatus, driver_.status());
  EXPECT_EQ(device_.activations, 1);
}

// --- Queue registers ---

TEST_F(MmioTransportTest, each_queue_has_its_limit_and_others_are_not_there) {
  EXPECT_EQ(driver_.max_queue_size(0), 16U);
  EXPECT_EQ(driver_.max_queue_size(1), 256U);
  for (const std::uint32_t queue : {2U, 0xffffU, 0x10000U, 0x10001U, 0x80000000U, kAllOnes}) {
    select(queue);
    EXPECT_EQ(read(mmio::kQueueNumMax), 0U) << queue;
    EXPECT_EQ(read(mmio::kQueueReady), 0U) << queue;
  }
}

TEST_F(MmioTransportTest, queue_that_is_not_there_takes_nothing) {
  features_ok();
  const auto before = transport_->state().queues;
  for (const std::uint32_t queue : {2U, 0x10000U, 0x10001U, kAllOnes}) {
    select(queue);
    for (std::uint64_t offset = mmio::kQueueNum; offset <= mmio::kQueueDeviceHigh; offset += 4) {
      if (offset < mmio::kQueueNotify || offset > mmio::kStatus) {
        write(offset, 1);
      }
    }
    EXPECT_EQ(read(mmio::kQueueReady), 0U);
  }
  EXPECT_EQ(transport_->state().queues, before);
}

TEST_F(MmioTransportTest, addresses_have_two_halves_each_in_any_order) {
  features_ok();
  select(1);
  write(mmio::kQueueDescHigh, 0x11111111);
  write(mmio::kQueueDescLow, 0x22222222);
  write(mmio::kQueueDriverLow, 0x33333333);
  write(mmio::kQueueDriverHigh, 0x44444444);
  write(mmio::kQueueDeviceHigh, 0x55555555);
  write(mmio::kQueueDeviceLow, 0x66666666);
  write(mmio::kQueueDeviceHigh, 0x77777777);
  write(mmio::kQueueNum, 64);
  EXPECT_EQ(transport_->state().queues[1], (MmioQueueRegisters{.size = 64,
                                                               .ready = false,
                                                               .descriptor_table = 0x1111111122222222,
                                                               .available_ring = 0x4444444433333333,
                                                               .used_ring = 0x7777777766666666}));
  EXPECT_EQ(transport_->state().queues[0], (MmioQueueRegisters{.size = 16}));
}

TEST_F(MmioTransportTest, queue_registers_are_for_between_features_ok_and_driver_ok) {
  take_steps(kAcknowledge | kDriver);
  const auto try_all = [this] {
    for (const std::uint64_t offset :
         {mmio::kQueueNum, mmio::kQueueDescLow, mmio::kQueueDescHigh, mmio::kQueueDriverLow,
          mmio::kQueueDriverHigh, mmio::kQueueDeviceLow, mmio::kQueueDeviceHigh, mmio::kQueueReady}) {
      write(offset, 1);
    }
  };
  const auto before = transport_->state().queues;
  try_all();
  EXPECT_EQ(transport_->state().queues, before);
  features_ok();
  driver_.driver_ok();
  try_all();
  EXPECT_EQ(transport_->state().queues, before);
}

TEST_F(MmioTransportTest, queue_registers_do_not_change_once_the_queue_is_ready) {
  features_ok();
  ASSERT_TRUE(driver_.set_up_queue(0, layout(0)));
  const auto before = transport_->state().queues;
  for (const std::uint64_t offset :
       {mmio::kQueueNum, mmio::kQueueDescLow, mmio::kQueueDescHigh, mmio::kQueueDriverLow,
        mmio::kQueueDriverHigh, mmio::kQueueDeviceLow, mmio::kQueueDeviceHigh}) {
    write(offset, 8);
  }
  EXPECT_EQ(transport_->state().queues, before);
  // Not ready any more, and set up anew: before DRIVER_OK nothing has begun.
  EXPECT_TRUE(driver_.stop_queue(0));
  EXPECT_THAT(device_.stopped, IsEmpty());
  write(mmio::kQueueNum, 8);
  EXPECT_EQ(transport_->state().queues[0].size, 8U);
  write(mmio::kQueueReady, 1);
  EXPECT_EQ(read(mmio::kQueueReady), 1U);
}

TEST_F(MmioTransportTest, queue_ready_is_1_or_0) {
  features_ok();
  select(0);
  write(mmio::kQueueReady, 2);
  EXPECT_EQ(read(mmio::kQueueReady), 0U);
  write(mmio::kQueueReady, 1);
  write(mmio::kQueueReady, 0xfffffffe);
  EXPECT_EQ(read(mmio::kQueueReady), 1U);
}

TEST_F(MmioTransportTest, device_gets_the_queues_that_are_ready_as_they_were_set_up) {
  features_ok(kFeatureVersion1 | kFeatureEventIndex);
  ASSERT_TRUE(driver_.set_up_queue(1, layout(1)));
  driver_.driver_ok();
  ASSERT_TRUE(device_.active);
  ASSERT_EQ(device_.active->queues.size(), 2U);
  EXPECT_FALSE(device_.active->queues[0]);
  const VirtQueueConfig& config = device_.active->queues[1]->config();
  EXPECT_EQ(config.size, 16U);
  EXPECT_EQ(config.descriptor_table.value(), layout(1).descriptors);
  EXPECT_EQ(config.available_ring.value(), layout(1).available);
  EXPECT_EQ(config.used_ring.value(), layout(1).used);
  EXPECT_TRUE(config.event_index);
  EXPECT_FALSE(config.indirect);
}

TEST_F(MmioTransportTest, queue_size_is_the_limit_where_the_driver_writes_none) {
  features_ok(kFeatureVersion1 | kFeatureIndirectDesc);
  select(0);
  const auto place = layout(0);
  write(mmio::kQueueDescLow, static_cast<std::uint32_t>(place.descriptors));
  write(mmio::kQueueDriverLow, static_cast<std::uint32_t>(place.available));
  write(mmio::kQueueDeviceLow, static_cast<std::uint32_t>(place.used));
  write(mmio::kQueueReady, 1);
  driver_.driver_ok();
  ASSERT_TRUE(device_.active && device_.active->queues[0]);
  EXPECT_EQ(device_.active->queues[0]->config().size, 16U);
  EXPECT_TRUE(device_.active->queues[0]->config().indirect);
  EXPECT_FALSE(device_.active->queues[0]->config().event_index);
}

TEST_F(MmioTransportTest, first_error_is_told_to_who_watches_and_no_other) {
  std::vector<std::string> told;
  device_.watch_errors([&told](std::string_view why) { told.emplace_back(why); });
  start();
  EXPECT_TRUE(told.empty());
  break_device();
  EXPECT_EQ(told, std::vector<std::string>{"a test's reason"});
  start();
  break_device();
  EXPECT_EQ(told.size(), 1U);
}

TEST_F(MmioTransportTest, queue_that_cannot_be_needs_a_reset_and_then_the_driver_may_try_again) {
  struct Case {
    std::uint64_t offset;
    std::uint32_t value;
  };
  // Queue 0 has a limit of 16; RAM ends at 1 MiB.
  for (const auto& [offset, value] :
       {Case{mmio::kQueueNum, 0}, Case{mmio::kQueueNum, 3}, Case{mmio::kQueueNum, 32},
        Case{mmio::kQueueNum, 0x10010}, Case{mmio::kQueueDescLow, 0x10008},
        Case{mmio::kQueueDescLow, 0x100000}, Case{mmio::kQueueDescHigh, 1},
        Case{mmio::kQueueDriverLow, 0x10000}, Case{mmio::kQueueDeviceHigh, kAllOnes}}) {
    features_ok();
    const int failed = device_.failed_activations;
    const int interrupts = line_.count();
    ASSERT_TRUE(driver_.set_up_queue(1, layout(1)));
    ASSERT_TRUE(driver_.set_up_queue(0, layout(0)));
    ASSERT_TRUE(driver_.stop_queue(0));
    write(offset, value);
    write(mmio::kQueueReady, 1);
    driver_.driver_ok();
    EXPECT_EQ(driver_.status(), kAcknowledge | kDriver | kFeaturesOk | kDriverOk | kNeedsReset) << offset;
    EXPECT_EQ(device_.failed_activations, failed + 1);
    EXPECT_EQ(device_.activations, 0);
    // 2.1.2: a notification, for DRIVER_OK is set.
    EXPECT_EQ(line_.count(), interrupts + 1);
    EXPECT_EQ(driver_.handle_interrupt(), kConfigurationChangeNotification);
  }
  start();
  EXPECT_EQ(device_.activations, 1);
}

TEST_F(MmioTransportTest, queue_above_its_limit_needs_a_reset_though_it_would_fit) {
  for (const std::uint16_t size : {std::uint16_t{16}, std::uint16_t{32}}) {
    features_ok();
    const auto place = RingLayout::at(0x10000, size);
    select(0);
    write(mmio::kQueueNum, size);
    write(mmio::kQueueDescLow, static_cast<std::uint32_t>(place.descriptors));
    write(mmio::kQueueDriverLow, static_cast<std::uint32_t>(place.available));
    write(mmio::kQueueDeviceLow, static_cast<std::uint32_t>(place.used));
    write(mmio::kQueueReady, 1);
    driver_.driver_ok();
    EXPECT_EQ(driver_.needs_reset(), size == 32) << size;
  }
}

TEST_F(MmioTransportTest, queue_ready_0_stops_that_queue_and_no_other) {
  start();
  send(0);
  send(1);
  run();
  EXPECT_EQ(device_.completed, 2U);
  EXPECT_TRUE(driver_.stop_queue(0));
  EXPECT_THAT(device_.stopped, ElementsAre(0U));
  EXPECT_TRUE(driver_.stop_queue(0));  // it has stopped: nothing to do
  EXPECT_THAT(device_.stopped, ElementsAre(0U));
  rings_[0]->chain().readable_at(0x1000, 1).submit();
  driver_.notify(0);
  send(1);
  run();
  EXPECT_EQ(device_.completed, 3U);
  EXPECT_EQ(rings_[0]->used_index(), 1);
  EXPECT_EQ(rings_[1]->used_index(), 2);
  // Not to be started again without a reset.
  select(0);
  write(mmio::kQueueReady, 1);
  EXPECT_EQ(read(mmio::kQueueReady), 0U);
}

TEST_F(MmioTransportTest, queue_ready_0_stops_a_queue_also_after_failure) {
  start();
  break_device();
  EXPECT_TRUE(driver_.stop_queue(0));
  driver_.add_status(kFailed);
  EXPECT_TRUE(driver_.stop_queue(1));
  EXPECT_THAT(device_.stopped, ElementsAre(0U, 1U));
}

// --- Doorbell ---

TEST_F(MmioTransportTest, doorbell_runs_the_device_on_the_loops_thread_only) {
  start();
  run();
  for (const std::uint32_t value : {0U, 1U, 2U, 0x10000U, kAllOnes}) {
    write(mmio::kQueueNotify, value);  // whatever was written, spurious too
    const int before = device_.processed;
    EXPECT_EQ(device_.processed, before);
    EXPECT_EQ(run(), 1) << value;
  }
  write(mmio::kQueueNotify, 0);
  write(mmio::kQueueNotify, 1);
  EXPECT_EQ(run(), 1);  // many rings are one look
  EXPECT_EQ(run(), 0);
}

TEST_F(MmioTransportTest, doorbell_eventfd_is_what_kvm_signals) {
  start();
  run();
  rings_[0]->chain().readable_at(0x1000, 1).submit();
  const std::uint64_t one = 1;
  ASSERT_EQ(::write(transport_->doorbell().get(), &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  EXPECT_EQ(run(), 1);
  EXPECT_EQ(device_.completed, 1U);
}

TEST_F(MmioTransportTest, activation_and_process_later_ring_too) {
  start();
  EXPECT_EQ(run(), 1);  // buffers may lie there already
  device_.run([](VirtioTransport& on) { on.process_later(); });
  EXPECT_EQ(run(), 1);
}

TEST_F(MmioTransportTest, doorbell_before_driver_ok_uses_no_buffer) {
  features_ok();
  SplitRing ring(driver_memory_, layout(0), BufferArena(0x40000, 0x10000));
  ASSERT_TRUE(driver_.set_up_queue(0, layout(0)));
  ring.chain().readable_at(0x1000, 1).submit();
  driver_.notify(0);
  run();
  EXPECT_EQ(ring.used_index(), 0);
  EXPECT_EQ(line_.count(), 0);
  driver_.driver_ok();
  run();
  EXPECT_EQ(ring.used_index(), 1);
}

TEST_F(MmioTransportTest, request_goes_through_the_real_event_loop) {
  auto loop = std::move(*EventLoop::create());
  FakeVirtioDevice real_device;
  auto real = std::move(*MmioTransport::create(real_device, memory_, line_, *loop));
  BusWindow real_window(*real);
  MmioDriver real_driver(real_window);
  ASSERT_TRUE(real_driver.negotiate(kAll));
  SplitRing ring(driver_memory_, layout(0), BufferArena(0x40000, 0x10000),
                 {.event_idx = true, .in_order = false});
  ASSERT_TRUE(real_driver.set_up_queue(0, layout(0)));
  // The driver on a thread of its own, as a vCPU is: it looks until its request is back.
  std::thread vcpu([&] {
    real_driver.driver_ok();
    for (int i = 0; i < 200; ++i) {
      ring.chain().readable_at(0x1000, 1).submit();
      if (ring.should_notify()) {
        real_driver.notify(0);
      }
      while (!ring.collect() && !real_driver.needs_reset()) {
        std::this_thread::yield();
      }
    }
    loop->stop();
  });
  EXPECT_TRUE(loop->run());
  vcpu.join();
  EXPECT_EQ(real_device.completed, 200U);
  EXPECT_THAT(ring.violations(), IsEmpty());
}

TEST_F(MmioTransportTest, registrar_that_cannot_watch_is_an_error) {
  registrar_.fail_next(Error(ErrorCode::kIo, "a test's reason"));
  FakeVirtioDevice other;
  const auto made = MmioTransport::create(other, memory_, line_, registrar_);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), ErrorCode::kIo);
}

// --- Interrupts ---

TEST_F(MmioTransportTest, used_buffers_interrupt_until_they_are_acknowledged) {
  start();
  use_buffers();
  EXPECT_EQ(line_.count(), 1);
  EXPECT_EQ(read(mmio::kInterruptStatus), kUsedBufferNotification);
  EXPECT_EQ(read(mmio::kInterruptStatus), kUsedBufferNotification);
  write(mmio::kInterruptAck, kConfigurationChangeNotification);
  EXPECT_EQ(read(mmio::kInterruptStatus), kUsedBufferNotification);
  write(mmio::kInterruptAck, kUsedBufferNotification);
  EXPECT_EQ(read(mmio::kInterruptStatus), 0U);
}

TEST_F(MmioTransportTest, each_event_is_an_edge_also_where_its_bit_is_still_set) {
  start();
  use_buffers();
  use_buffers();
  change_configuration();
  EXPECT_EQ(line_.count(), 3);
  EXPECT_EQ(read(mmio::kInterruptStatus), kUsedBufferNotification | kConfigurationChangeNotification);
  write(mmio::kInterruptAck, kAllOnes);
  EXPECT_EQ(read(mmio::kInterruptStatus), 0U);
  EXPECT_EQ(line_.count(), 3);
}

TEST_F(MmioTransportTest, request_interrupts_where_the_driver_wants_it) {
  start(kFeatureVersion1);
  run();
  send(0);
  run();
  EXPECT_EQ(line_.count(), 1);
  EXPECT_EQ(driver_.handle_interrupt(), kUsedBufferNotification);
  rings_[0]->disable_interrupts();
  send(0);
  run();
  EXPECT_EQ(device_.completed, 2U);
  EXPECT_EQ(line_.count(), 1);
  EXPECT_EQ(read(mmio::kInterruptStatus), 0U);
}

// --- Configuration space ---

TEST_F(MmioTransportTest, configuration_is_read_in_any_width_before_any_status_bit) {
  EXPECT_EQ(driver_.config_u8(0), 0xa0U);
  EXPECT_EQ(driver_.config_u16(2), 0xa3a2U);
  EXPECT_EQ(driver_.config_u32(4), 0xa7a6a5a4U);
  EXPECT_EQ(driver_.config_u64(8), 0xafaeadacabaaa9a8U);
  EXPECT_EQ(window_.read(mmio::kConfig + 1, 8), 0xa8a7a6a5a4a3a2a1U);
  EXPECT_EQ(driver_.status(), 0U);
}

TEST_F(MmioTransportTest, configuration_past_its_end_reads_as_0_and_is_not_written) {
  features_ok();
  EXPECT_EQ(driver_.config_u32(FakeVirtioDevice::kConfigurationSize), 0U);
  EXPECT_EQ(window_.read(mmio::kConfig + FakeVirtioDevice::kConfigurationSize - 4, 8), 0xb7b6b5b4U);
  EXPECT_EQ(window_.read(MmioTransport::kWindow - 8, 8), 0U);
  const auto before = device_.configuration;
  driver_.write_config_u32(FakeVirtioDevice::kConfigurationSize, kAllOnes);
  EXPECT_EQ(device_.configuration, before);
}

TEST_F(MmioTransportTest, configuration_is_written_from_driver_on_and_not_after_failure) {
  take_steps(kAcknowledge);
  driver_.write_config_u8(0, 1);
  EXPECT_EQ(device_.configuration_writes, 0);
  driver_.add_status(kDriver);
  driver_.write_config_u8(0, 1);
  driver_.write_config_u16(2, 0x0302);
  driver_.write_config_u32(4, 0x07060504);
  EXPECT_EQ(driver_.config_u32(0), 0x0302a101U);
  EXPECT_EQ(driver_.config_u32(4), 0x07060504U);
  break_device();
  driver_.write_config_u8(0, 9);
  EXPECT_EQ(driver_.config_u8(0), 1U);
}

TEST_F(MmioTransportTest, generation_changes_with_each_change_and_not_otherwise) {
  start();
  const std::uint32_t first = read(mmio::kConfigGeneration);
  driver_.config_u64(0);
  EXPECT_EQ(read(mmio::kConfigGeneration), first);
  change_configuration();
  const std::uint32_t second = read(mmio::kConfigGeneration);
  EXPECT_NE(second, first);
  change_configuration();
  EXPECT_NE(read(mmio::kConfigGeneration), second);
  EXPECT_NE(read(mmio::kConfigGeneration), first);
  // A reset is no excuse to show an old generation again.
  driver_.reset();
  EXPECT_NE(read(mmio::kConfigGeneration), first);
}

TEST_F(MmioTransportTest, change_between_two_halves_is_noticed_by_the_driver) {
  start();
  int reads = 0;
  std::uint64_t value = 0;
  EXPECT_TRUE(driver_.read_config_consistently([&] {
    value = driver_.config_u32(0);
    if (++reads == 1) {
      device_.run([this](VirtioTransport& on) {
        std::ranges::fill(device_.configuration, std::uint8_t{0x11});
        on.configuration_changed();
      });
    }
    value |= std::uint64_t{driver_.config_u32(4)} << 32;
  }));
  EXPECT_EQ(reads, 2);
  EXPECT_EQ(value, 0x1111111111111111U);
}

TEST_F(MmioTransportTest, configuration_change_interrupts_from_driver_ok_on_only) {
  features_ok();
  change_configuration();
  EXPECT_EQ(line_.count(), 0);
  EXPECT_EQ(read(mmio::kInterruptStatus), 0U);
  start();
  change_configuration();
  EXPECT_EQ(line_.count(), 1);
  EXPECT_EQ(driver_.handle_interrupt(), kConfigurationChangeNotification);
}

// --- Save and restore ---

// What a fresh transport over a fresh device becomes of a saved state.
struct Restored {
  explicit Restored(GuestMemory& memory)
      : transport(std::move(*MmioTransport::create(device, memory, line, registrar))) {}
  int run() {
    const int before = device.processed;
    while (registrar.report_readable(0) != 0) {
    }
    return device.processed - before;
  }
  std::string refusal(const MmioTransportState& state,
                      const std::vector<std::optional<VirtQueueState>>& queues) const {
    const auto restored = transport->restore(state, queues);
    return restored ? std::string() : restored.error().message();
  }

  CountedLine line;
  ManualRegistrar registrar;
  FakeVirtioDevice device;
  std::unique_ptr<MmioTransport> transport;
  BusWindow window{*transport};
  MmioDriver driver{window};
};

std::vector<std::optional<VirtQueueState>> progress_of(const FakeVirtioDevice& device) {
  std::vector<std::optional<VirtQueueState>> progress;
  for (std::size_t index = 0; index < device.queue_limits().size(); ++index) {
    const bool in_use = device.active && device.active->queues[index];
    progress.push_back(in_use ? std::optional(device.active->queues[index]->state()) : std::nullopt);
  }
  return progress;
}

TEST_F(MmioTransportTest, restored_device_goes_on_in_the_middle_of_its_rings) {
  start();
  for (int turn = 0; turn < 13; ++turn) {
    send(0);
    run();
    EXPECT_TRUE(rings_[0]->collect());
  }
  driver_.handle_interrupt();
  rings_[0]->chain().readable_at(0x1000, 1).submit();  // and nobody rings
  change_configuration();
  const MmioTransportState state = transport_->state();

  Restored second(memory_);
  ASSERT_EQ(second.refusal(state, progress_of(device_)), "");
  EXPECT_EQ(second.transport->state(), state);
  EXPECT_EQ(second.device.activations, 1);
  EXPECT_EQ(second.device.active->features, kAll);
  EXPECT_EQ(second.line.count(), 1) << "of the change that was not acknowledged";
  EXPECT_GE(second.run(), 1);
  for (int turn = 0; turn < 13; ++turn) {
    EXPECT_TRUE(rings_[0]->collect()) << turn;
    rings_[0]->chain().readable_at(0x1000, 1).submit();
    second.driver.notify(0);
    second.run();
  }
  EXPECT_EQ(second.driver.handle_interrupt(), kConfigurationChangeNotification);
  EXPECT_THAT(rings_[0]->violations(), IsEmpty());
  EXPECT_TRUE(second.driver.reset());
  EXPECT_FALSE(second.device.active);
}

TEST_F(MmioTransportTest, state_before_driver_ok_is_restored_and_the_driver_goes_on) {
  features_ok();
  ASSERT_TRUE(driver_.set_up_queue(0, layout(0)));
  select(1);
  write(mmio::kQueueNum, 64);
  Restored second(memory_);
  ASSERT_EQ(second.refusal(transport_->state(), progress_of(device_)), "");
  EXPECT_EQ(second.transport->state(), transport_->state());
  EXPECT_EQ(second.device.activations, 0);
  EXPECT_EQ(second.line.count(), 0);
  second.driver.driver_ok();
  EXPECT_EQ(second.device.activations, 1);
}

TEST_F(MmioTransportTest, device_that_needs_a_reset_is_restored_as_that) {
  start();
  break_device();
  Restored second(memory_);
  ASSERT_EQ(second.refusal(transport_->state(), {}), "");
  EXPECT_TRUE(second.driver.needs_reset());
  EXPECT_EQ(second.device.activations, 0);
  EXPECT_TRUE(second.driver.reset());
  EXPECT_EQ(second.driver.negotiate(kAll), kAll);
}

TEST_F(MmioTransportTest, state_that_cannot_be_is_refused_and_changes_nothing) {
  start();
  const MmioTransportState good = transport_->state();
  const auto progress = progress_of(device_);
  Restored second(memory_);
  const MmioTransportState fresh = second.transport->state();
  const auto expect_refused = [&](auto change, const std::string& why) {
    MmioTransportState bad = good;
    auto bad_progress = progress;
    change(bad, bad_progress);
    EXPECT_THAT(second.refusal(bad, bad_progress), HasSubstr(why));
    EXPECT_EQ(second.transport->state(), fresh);
    EXPECT_EQ(second.device.activations, 0);
    EXPECT_EQ(second.line.count(), 0);
  };
  for (const std::uint32_t status : {0x10U, 0x100U, 0x80000000U, kDriver, kAcknowledge | kFeaturesOk,
                                     kDriverOk, kAcknowledge | kDriver | kDriverOk}) {
    expect_refused([status](auto& state, auto&) { state.status = status; },
                   "fake: restore its transport: there is no status");
  }
  expect_refused([](auto& state, auto&) { state.interrupt_status = 4; }, "interrupts 0x4");
  expect_refused([](auto& state, auto&) { state.driver_features |= 2; }, "does not offer here: 0x2");
  expect_refused([](auto& state, auto&) { state.unknown_features = true; }, "past bit 63");
  expect_refused([](auto& state, auto&) { state.driver_features = 1; }, "none of virtio 1");
  expect_refused([](auto& state, auto&) { state.queues.pop_back(); }, "1 queues");
  expect_refused([](auto& state, auto&) { state.queues.resize(1000); }, "1000 queues");
  expect_refused([](auto& state, auto&) { state.status = kAcknowledge; }, "ready before FEATURES_OK");
  expect_refused([](auto& state, auto&) { state.queues[0].size = 32; }, "queue 0: it has 32 entries");
  expect_refused([](auto& state, auto&) { state.queues[1].size = 3; }, "queue 1: ");
  expect_refused([](auto& state, auto&) { state.queues[1].used_ring = ~std::uint64_t{3}; }, "queue 1: ");
  expect_refused([](auto& state, auto&) { state.queues[1].ready = false; }, "queue 1 is not in use");
  expect_refused([](auto&, auto& states) { states[0].reset(); }, "queue 0 is in use");
  expect_refused([](auto&, auto& states) { states.clear(); }, "queue 0 is in use");
  EXPECT_EQ(second.refusal(good, progress), "");
}

// Two indices that no driver and device ever had: whatever comes of it is the guest's own harm.
TEST_F(MmioTransportTest, indices_that_cannot_be_do_the_device_no_harm) {
  start();
  const MmioTransportState state = transport_->state();
  constexpr std::array<std::uint16_t, 6> kIndices = {0, 1, 16, 17, 0x7fff, 0xffff};
  for (const std::uint16_t available : kIndices) {
    for (const std::uint16_t used : kIndices) {
      Restored second(memory_);
      const VirtQueueState at{.next_available = available, .next_used = used};
      ASSERT_EQ(second.refusal(state, {at, at}), "");
      second.driver.notify(0);
      second.run();
    }
  }
}

// --- Reset and DEVICE_NEEDS_RESET ---

TEST_F(MmioTransportTest, reset_at_any_status_gives_a_fresh_device) {
  const std::uint32_t generation = read(mmio::kConfigGeneration);
  for (int until = 0; until < 7; ++until) {
    const int resets = device_.resets;
    if (until >= 5) {
      start();
      send(0);
      use_buffers();
    }
    if (until == 6) {
      break_device();
    }
    constexpr std::array<std::uint32_t, 4> kSteps = {0, kAcknowledge, kAcknowledge | kDriver,
                                                     kAcknowledge | kDriver | kFailed};
    if (until < 4) {
      write(mmio::kStatus, kSteps.at(static_cast<std::size_t>(until)));
    } else if (until == 4) {
      features_ok();
      ASSERT_TRUE(driver_.set_up_queue(0, layout(0)));
    }
    write(mmio::kDeviceFeaturesSel, 1);
    select(1);
    write(mmio::kStatus, 0);
    EXPECT_GT(device_.resets, resets);
    MmioTransportState fresh;
    fresh.generation = generation;
    fresh.queues = {{.size = 16}, {.size = 256}};
    EXPECT_EQ(transport_->state(), fresh) << until;
    EXPECT_EQ(read(mmio::kInterruptStatus), 0U);
    EXPECT_FALSE(device_.active);
  }
}

TEST_F(MmioTransportTest, after_a_reset_no_buffer_is_used_and_no_interrupt_sent) {
  start();
  run();
  rings_[0]->chain().readable_at(0x1000, 1).submit();
  driver_.notify(0);  // rung, not yet heard
  const int interrupts = line_.count();
  driver_.reset();
  run();
  driver_.notify(0);
  run();
  change_configuration();
  EXPECT_EQ(rings_[0]->used_index(), 0);
  EXPECT_EQ(device_.completed, 0U);
  EXPECT_EQ(line_.count(), interrupts);
  EXPECT_EQ(read(mmio::kInterruptStatus), 0U);
  start();
  send(0);
  run();
  EXPECT_EQ(rings_[0]->used_index(), 1);
}

TEST_F(MmioTransportTest, broken_ring_needs_a_reset_and_the_driver_begins_again) {
  start();
  run();
  rings_[0]->write_available_index(17);
  driver_.notify(0);
  run();
  EXPECT_TRUE(driver_.needs_reset());
  EXPECT_EQ(driver_.handle_interrupt(), kConfigurationChangeNotification);
  send(1);
  run();
  EXPECT_EQ(device_.completed, 0U);
  start();
  send(0);
  send(1);
  run();
  EXPECT_EQ(device_.completed, 2U);
  EXPECT_FALSE(driver_.needs_reset());
}

TEST_F(MmioTransportTest, need_of_a_reset_before_driver_ok_is_seen_but_does_not_interrupt) {
  features_ok();
  break_device();
  EXPECT_TRUE(driver_.needs_reset());
  EXPECT_EQ(line_.count(), 0);
  driver_.driver_ok();
  EXPECT_EQ(driver_.status() & kDriverOk, 0U);
  EXPECT_EQ(device_.activations, 0);
}

TEST_F(MmioTransportTest, driver_that_keeps_the_bit_in_its_writes_or_drops_it_is_not_stuck) {
  start();
  break_device();
  const std::uint32_t all = driver_.status();
  write(mmio::kStatus, all & ~kNeedsReset);  // it need not echo the device's bit, and cannot clear it
  EXPECT_EQ(driver_.status(), all);
  write(mmio::kStatus, all | kFailed);
  EXPECT_EQ(driver_.status(), all | kFailed);
}

// --- Two threads at once ---

TEST_F(MmioTransportTest, registers_are_used_by_two_threads_while_the_device_works) {
  auto loop = std::move(*EventLoop::create());
  FakeVirtioDevice busy;
  auto shared = std::move(*MmioTransport::create(busy, memory_, line_, *loop));
  std::atomic<int> running{2};
  const auto hammer = [&](unsigned seed) {
    std::mt19937 random(seed);
    BusWindow own(*shared);
    MmioDriver vcpu(own);
    for (int round = 0; round < 150; ++round) {
      static_cast<void>(vcpu.negotiate(kAll));
      for (std::uint16_t queue = 0; queue < 2; ++queue) {
        static_cast<void>(vcpu.set_up_queue(queue, layout(queue)));
      }
      vcpu.driver_ok();
      for (int i = 0; i < 20; ++i) {
        const std::uint64_t offset = random() % (MmioTransport::kConfiguration + 32);
        vcpu.notify(0);
        own.read(offset & ~std::uint64_t{3}, 4);
        own.write(mmio::kInterruptAck, 4, 3);
        own.read(mmio::kInterruptStatus, 4);
        own.write(mmio::kConfig + offset % 16, 1, 7);

        static_cast<void>(shared->state());
      }
    }
    if (--running == 0) {
      loop->stop();
    }
  };
  std::thread one(hammer, 1U);
  std::thread two(hammer, 2U);
  EXPECT_TRUE(loop->run());
  one.join();
  two.join();
  BusWindow own(*shared);
  MmioDriver last(own);
  EXPECT_TRUE(last.reset());
  EXPECT_EQ(last.negotiate(kAll), kAll);
}

// --- Anything ---

TEST(MmioTransportModel, random_accesses_and_events_agree_with_the_model) {
  std::mt19937 random(1);
  std::vector<std::uint8_t> input(400);
  for (int round = 0; round < 300; ++round) {
    for (std::uint8_t& byte : input) {
      byte = static_cast<std::uint8_t>(random());
    }
    MmioExerciser exerciser;
    const auto difference = exerciser.run(input);
    ASSERT_EQ(difference, std::nullopt) << "round " << round;
  }
}

}  // namespace
}  // namespace mayfly::testing
