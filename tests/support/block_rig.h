// A block device with a transport, guest memory and a driver: what a test needs to send it requests.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio/block/block_device.h"
#include "devices/virtio/transport/mmio_transport.h"
#include "support/block_requests.h"
#include "support/fake_event.h"
#include "support/mmio_window.h"
#include "support/virtio_driver/mmio_driver.h"

namespace mayfly::testing {

class BlockRig {
 public:
  static constexpr std::uint64_t kMemory = 16U << 20;
  static constexpr std::uint64_t kArena = 1U << 20;  // where buffers begin
  static constexpr std::uint64_t kAllFeatures = ~std::uint64_t{0} & ~kFeatureInOrder;

  struct Answer {
    std::optional<std::uint8_t> status;  // nothing: the device did not say
    std::vector<std::byte> data;
    std::uint32_t length = 0;  // as the device wrote it
  };

  BlockRig() : memory_(make_memory()), driver_memory_(memory_) {}
  ~BlockRig() { EXPECT_EQ(violations(), std::vector<std::string>()); }

  // Makes the device; false, and the error kept, where it cannot be.
  bool make(const BlockDeviceConfig& config) { return take(BlockDevice::create(config, registrar)); }
  // The same over other engines, by another clock.
  bool make(const BlockDeviceConfig& config, std::vector<std::unique_ptr<IoEngine>> engines,
            const Clock& clock = kSystemClock) {
    // A device that there was before has the image locked.
    driver.reset();
    window.reset();
    transport.reset();
    device.reset();
    auto image =
        DiskImage::open("drive " + config.id, config.path,
                        {.access = config.read_only ? ImageAccess::kRead : ImageAccess::kReadAndWrite});
    if (!image) {
      error = image.error().message();
      return false;
    }
    return take(BlockDevice::create(
        config, registrar, {.image = std::move(*image), .engines = std::move(engines), .clock = clock}));
  }
  // Saves the device, and goes on with one that is restored from that, over the same memory; the driver
  // notices nothing.
  void move_to(const BlockDeviceConfig& config) {
    BlockDeviceState state;
    {
      const MutexLock lock(device->mutex());
      state = device->state();
    }
    const MmioTransportState registers = transport->state();
    driver.reset();
    window.reset();
    transport.reset();
    device.reset();
    ASSERT_TRUE(make(config)) << error;
    {
      const MutexLock lock(device->mutex());
      const auto restored = device->restore(state);
      ASSERT_TRUE(restored) << restored.error().message();
    }
    const auto restored = transport->restore(registers, state.queues);
    ASSERT_TRUE(restored) << restored.error().message();
  }
  // As far as DRIVER_OK, with `queues` of `size`.
  void start(std::uint64_t wanted = kAllFeatures, std::uint16_t queues = 1, std::uint16_t size = 256) {
    const auto agreed = driver->negotiate(wanted);
    ASSERT_TRUE(agreed);
    features = *agreed;
    finish_start(queues, size);
  }
  void finish_start(std::uint16_t queues = 1, std::uint16_t size = 256) {
    rings.clear();
    const std::uint64_t room = (kMemory - kArena) / queues;
    for (std::uint16_t queue = 0; queue < queues; ++queue) {
      const auto layout = RingLayout::at(0x10000 + std::uint64_t{queue} * 0x8000, size);
      rings.push_back(std::make_unique<SplitRing>(
          driver_memory_, layout, BufferArena(kArena + queue * room, room),
          RingFeatures{.event_idx = (features & kFeatureEventIndex) != 0, .in_order = false}));
      ASSERT_TRUE(driver->set_up_queue(queue, layout));
    }
    driver->driver_ok();
    run();
  }

  // Lets the device do what there is to do now.
  void run() {
    while (!runs_elsewhere && registrar.report_readable(0) != 0) {
    }
  }
  void notify(std::uint16_t queue = 0) {
    if (rings[queue]->should_notify()) {
      driver->notify(queue);
    }
    run();
  }
  // Until all that was submitted has come back.
  std::vector<Answer> collect(std::uint16_t queue = 0) {
    std::vector<Answer> answers;
    SplitRing& ring = *rings[queue];
    notify(queue);
    while (ring.outstanding() != 0) {
      for (const Completion& completion : ring.collect_all()) {
        answers.push_back(read(completion));
      }
      if (ring.outstanding() != 0 && registrar.report_readable(10'000) == 0) {
        ADD_FAILURE() << "the device does not answer";
        break;
      }
    }
    return answers;
  }
  static Answer read(const Completion& completion) {
    Answer answer{.status = std::nullopt, .data = completion.writable, .length = completion.length};
    if (!answer.data.empty()) {
      if (completion.length == completion.writable.size()) {
        answer.status = static_cast<std::uint8_t>(answer.data.back());
      }
      answer.data.pop_back();
    }
    return answer;
  }

  // One request, to its end.
  Answer request(const std::vector<std::byte>& readable, std::uint32_t writable, std::uint16_t queue = 0) {
    auto chain = rings[queue]->chain();
    chain.readable(readable);
    if (writable != 0) {
      chain.writable(writable);
    }
    chain.submit();
    auto answers = collect(queue);
    return answers.empty() ? Answer{} : answers.front();
  }
  Answer in(std::uint64_t sector, std::uint32_t bytes, std::uint16_t queue = 0) {
    return request(blk::header(blk::VIRTIO_BLK_T_IN, sector), bytes + 1, queue);
  }
  std::optional<std::uint8_t> out(std::uint64_t sector, const std::vector<std::byte>& data,
                                  std::uint16_t queue = 0) {
    using blk::operator+;
    return request(blk::header(blk::VIRTIO_BLK_T_OUT, sector) + data, 1, queue).status;
  }
  std::optional<std::uint8_t> command(std::uint32_t type, const std::vector<std::byte>& data = {}) {
    using blk::operator+;
    return request(blk::header(type, 0) + data, 1).status;
  }

  std::vector<std::string> violations() {
    std::vector<std::string> all;
    for (const auto& ring : rings) {
      ring->check_driver_areas();
      all.insert(all.end(), ring->violations().begin(), ring->violations().end());
    }
    return all;
  }

  GuestMemory& memory() { return memory_; }
  DriverMemory& driver_memory() { return driver_memory_; }

  ManualRegistrar registrar;
  CountedLine line;
  std::unique_ptr<BlockDevice> device;
  std::unique_ptr<MmioTransport> transport;
  std::unique_ptr<BusWindow> window;
  std::unique_ptr<MmioDriver> driver;
  std::vector<std::unique_ptr<SplitRing>> rings;
  std::uint64_t features = 0;
  std::string error;
  bool runs_elsewhere = false;  // on a thread of the test's: the driver's only submits

 private:
  static GuestMemory make_memory() {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), kMemory)};
    return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
  }
  bool take(Result<std::unique_ptr<BlockDevice>> made) {
    if (!made) {
      error = made.error().message();
      return false;
    }
    device = std::move(*made);
    transport = std::move(*MmioTransport::create(*device, memory_, line, registrar));
    window = std::make_unique<BusWindow>(*transport);
    driver = std::make_unique<MmioDriver>(*window);
    return true;
  }

  GuestMemory memory_;
  GuestDriverMemory driver_memory_;
};

}  // namespace mayfly::testing
