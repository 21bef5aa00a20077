// An MmioTransport under any sequence of register accesses and device events, beside a model of it.
//
// The model is written from virtio 1.2, sections 2.1 and 4.2.2, and from what mmio_transport.h says of
// accesses that the specification leaves open. One thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/virtio/transport/mmio_transport.h"
#include "support/fake_event.h"
#include "support/fake_virtio_device.h"
#include "support/mmio_window.h"
#include "support/queue_exerciser.h"

namespace mayfly::testing {

class MmioExerciser {
 public:
  // What the two differ in, or nothing.
  std::optional<std::string> run(std::span<const std::uint8_t> input) {
    Decisions decisions(input);
    for (int step = 0; step < kMaxSteps && !decisions.empty() && !difference_; ++step) {
      one_step(decisions);
      compare();
    }
    return difference_;
  }

 private:
  static constexpr int kMaxSteps = 256;
  static constexpr std::uint64_t kMemory = 0x10000;
  static constexpr std::array<std::uint16_t, 3> kLimits = {4, 16, 256};

  struct ModelQueue {
    std::uint32_t size = 0;
    bool ready = false;
    std::array<std::uint64_t, 3> parts{};  // descriptors, available, used
  };

  static GuestMemory make_memory() {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), kMemory)};
    return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
  }

  void differ(std::string what) {
    if (!difference_) {
      difference_ = std::move(what);
    }
  }

  // --- Steps ---

  void one_step(Decisions& decisions) {
    switch (decisions.below(8)) {
      case 0:
      case 1:
        return write_likely(decisions);
      case 2:
        return write(4ULL * decisions.below(64), 4, decisions.take<std::uint32_t>());
      case 3: {
        const auto offset = decisions.take<std::uint16_t>() % (MmioTransport::kWindow - 7);
        return write(offset, 1U << decisions.below(4), decisions.take<std::uint64_t>());
      }
      case 4:
        return read(4ULL * decisions.below(64), 4);
      case 5:
        return read(decisions.take<std::uint16_t>() % (MmioTransport::kWindow - 7), 1U << decisions.below(4));
      case 6:
        return bring_up(decisions);
      default:
        return event(decisions);
    }
  }

  void write_likely(Decisions& decisions) {
    const std::uint32_t choice = decisions.below(12);
    switch (choice) {
      case 0:
      case 1: {
        static constexpr std::array<std::uint32_t, 8> kSteps = {1, 3, 11, 15, 0, 0x8f, 7, 0x4f};
        return write(mmio::kStatus, 4, kSteps.at(decisions.below(kSteps.size())));
      }
      case 2:
        return write(mmio::kDriverFeaturesSel, 4, decisions.below(3));
      case 3:
        return write(mmio::kDriverFeatures, 4, decisions.below(2) != 0 ? 1 : decisions.take<std::uint32_t>());
      case 4:
        return write(mmio::kDeviceFeaturesSel, 4, decisions.below(3));
      case 5:
        return write(mmio::kQueueSel, 4, decisions.below(4));
      case 6:
        return write(mmio::kQueueNum, 4, 1U << decisions.below(10));
      case 7:
        return write(mmio::kQueueReady, 4, decisions.below(3));
      case 8:
        return write(mmio::kInterruptAck, 4, decisions.below(4));
      case 9:
        return write(mmio::kQueueNotify, 4, decisions.below(4));
      default:
        return write(mmio::kQueueDescLow + 4ULL * decisions.below(10), 4,
                     16U * decisions.take<std::uint8_t>());
    }
  }

  // As far as a driver gets that does it right, or stops somewhere.
  void bring_up(Decisions& decisions) {
    const std::uint32_t until = decisions.below(8);
    if (until == 0) {
      write(mmio::kStatus, 4, 0);
    }
    write(mmio::kStatus, 4, 1);
    write(mmio::kStatus, 4, 3);
    write(mmio::kDriverFeaturesSel, 4, 0);
    write(mmio::kDriverFeatures, 4, FakeVirtioDevice::kOwnFeatures & decisions.take<std::uint32_t>());
    write(mmio::kDriverFeaturesSel, 4, 1);
    write(mmio::kDriverFeatures, 4, until == 1 ? 0 : 1);
    write(mmio::kStatus, 4, 11);
    for (std::uint32_t queue = 0; queue < kLimits.size(); ++queue) {
      write(mmio::kQueueSel, 4, queue);
      write(mmio::kQueueNum, 4,
            static_cast<std::uint32_t>(kLimits.at(queue)) << (until == 3 ? decisions.below(2) : 0));
      write(mmio::kQueueDescLow, 4, 0x4000 * queue);
      write(mmio::kQueueDriverLow, 4, 0x4000 * queue + 0x2000);
      write(mmio::kQueueDeviceLow, 4, 0x4000 * queue + 0x3000);
      write(mmio::kQueueReady, 4, until == 2 && queue == 1 ? 0 : 1);
    }
    if (until > 2) {
      write(mmio::kStatus, 4, 15);
    }
  }

  void event(Decisions& decisions) {
    switch (decisions.below(5)) {
      case 0:
        device_.run([](VirtioTransport& transport) { transport.used_buffers(); });
        interrupt(1);
        return;
      case 1:
        device_.run([](VirtioTransport& transport) { transport.configuration_changed(); });
        ++generation_;
        if ((status_ & 4) != 0) {
          interrupt(2);
        }
        return;
      case 2:
        device_.run([](VirtioTransport& transport) { transport.needs_reset("a test"); });
        need_reset();
        return;
      case 3:
        device_.run([](VirtioTransport& transport) { transport.process_later(); });
        doorbell_ = true;
        return;
      default: {
        const int before = device_.processed;
        registrar_.report_readable(0);
        if (device_.processed - before != (doorbell_ ? 1 : 0)) {
          differ("the doorbell");
        }
        doorbell_ = false;
        return;
      }
    }
  }

  // --- The model ---

  void interrupt(std::uint32_t bit) {
    interrupts_ |= bit;
    ++edges_;
  }
  void need_reset() {
    status_ |= 64;
    if ((status_ & 4) != 0) {
      interrupt(2);
    }
  }
  bool gone() const { return (status_ & (64 | 128)) != 0; }

  void write(std::uint64_t offset, unsigned width, std::uint64_t value) {
    window_.write(offset, width, value);
    if (offset >= mmio::kConfig) {
      if ((status_ & 2) != 0 && !gone()) {
        for (unsigned i = 0; i < width; ++i) {
          const std::uint64_t at = offset - mmio::kConfig + i;
          if (at < configuration_.size()) {
            configuration_[at] = static_cast<std::uint8_t>(value >> (8 * i));
          }
        }
      }
    } else if (width == 4 && offset % 4 == 0) {
      write_model(offset, static_cast<std::uint32_t>(value));
    }
  }

  void write_model(std::uint64_t offset, std::uint32_t value) {
    switch (offset) {
      case mmio::kDeviceFeaturesSel:
        device_select_ = value;
        return;
      case mmio::kDriverFeaturesSel:
        driver_select_ = value;
        return;
      case mmio::kDriverFeatures:
        if ((status_ & 2) != 0 && (status_ & 8) == 0 && !gone()) {
          if (driver_select_ < 2) {
            words_.at(driver_select_) = value;
          } else {
            beyond_ = beyond_ || value != 0;
          }
        }
        return;
      case mmio::kQueueSel:
        queue_select_ = value;
        return;
      case mmio::kQueueNotify:
        doorbell_ = true;
        return;
      case mmio::kInterruptAck:
        interrupts_ &= ~value;
        return;
      case mmio::kStatus:
        return write_status(value);
      default:
        return write_queue(offset, value);
    }
  }

  void write_queue(std::uint64_t offset, std::uint32_t value) {
    if (queue_select_ >= queues_.size()) {
      return;
    }
    ModelQueue& queue = queues_.at(queue_select_);
    if (offset == mmio::kQueueReady && value == 0) {
      stops_ += queue.ready && (status_ & 4) != 0 ? 1 : 0;
      queue.ready = false;
      return;
    }
    if ((status_ & 8) == 0 || (status_ & 4) != 0 || gone() || queue.ready) {
      return;
    }
    if (offset == mmio::kQueueNum) {
      queue.size = value;
    } else if (offset == mmio::kQueueReady) {
      queue.ready = value == 1;
    } else if (offset >= 0x80 && offset < 0xb0 && offset % 16 < 8) {
      std::uint64_t& part = queue.parts.at((offset - 0x80) / 16);
      part = offset % 16 == 0 ? (part >> 32 << 32) | value : (part & UINT32_MAX) | std::uint64_t{value} << 32;
    }
  }

  void write_status(std::uint32_t value) {
    if (value == 0) {
      status_ = device_select_ = driver_select_ = queue_select_ = interrupts_ = 0;
      words_ = {};
      beyond_ = false;
      reset_queues();
      ++resets_;
      return;
    }
    const std::uint32_t mine = status_ & ~std::uint32_t{64};
    if ((mine & value) != mine) {
      return;
    }
    status_ |= value & 0x81;
    if ((value & 2) != 0 && (status_ & 1) != 0) {
      status_ |= 2;
    }
    if (gone()) {
      return;
    }
    const std::uint64_t accepted = words_[0] | std::uint64_t{words_[1]} << 32;
    if ((value & 8) != 0 && (status_ & 10) == 2 && !beyond_ && (words_[1] & 1) != 0 &&
        (accepted & ~(FakeVirtioDevice::kOwnFeatures | std::uint64_t{1} << 32)) == 0) {
      status_ |= 8;
      ++accepted_;
    }
    if ((value & 4) != 0 && (status_ & 12) == 8) {
      status_ |= 4;
      activate();
    }
  }

  void activate() {
    for (std::size_t index = 0; index < queues_.size(); ++index) {
      if (queues_[index].ready && !sound(queues_[index], kLimits.at(index))) {
        ++failed_;
        return need_reset();
      }
    }
    ++activations_;
    doorbell_ = true;
  }

  static bool sound(const ModelQueue& queue, std::uint32_t limit) {
    if (queue.size == 0 || queue.size > limit || (queue.size & (queue.size - 1)) != 0) {
      return false;
    }
    const std::array<std::uint64_t, 3> sizes = {16ULL * queue.size, 6 + 2ULL * queue.size,
                                                6 + 8ULL * queue.size};
    constexpr std::array<std::uint64_t, 3> kAlignments = {16, 2, 4};
    for (std::size_t i = 0; i < 3; ++i) {
      const std::uint64_t at = queue.parts.at(i);
      if (at % kAlignments.at(i) != 0 || at >= kMemory || sizes.at(i) > kMemory - at) {
        return false;
      }
      for (std::size_t j = 0; j < i; ++j) {
        const std::uint64_t other = queue.parts.at(j);
        if (at < other + sizes.at(j) && other < at + sizes.at(i)) {
          return false;
        }
      }
    }
    return true;
  }

  void reset_queues() {
    queues_.clear();
    for (const std::uint16_t limit : kLimits) {
      queues_.push_back({.size = limit, .ready = false, .parts = {}});
    }
  }

  void read(std::uint64_t offset, unsigned width) {
    std::uint64_t expected = 0;
    if (offset >= mmio::kConfig) {
      for (unsigned i = 0; i < width; ++i) {
        const std::uint64_t at = offset - mmio::kConfig + i;
        expected |= std::uint64_t{at < configuration_.size() ? configuration_[at] : std::uint8_t{0}}
                    << (8 * i);
      }
    } else if (width == 4 && offset % 4 == 0) {
      expected = read_model(offset);
    } else {
      expected = width == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * width)) - 1;
    }
    const std::uint64_t got = window_.read(offset, width);
    if (got != expected) {
      differ("register " + std::to_string(offset) + " reads as " + std::to_string(got) + ", not " +
             std::to_string(expected));
    }
  }

  std::uint32_t read_model(std::uint64_t offset) const {
    const std::uint64_t offered = FakeVirtioDevice::kOwnFeatures | std::uint64_t{1} << 32;
    switch (offset) {
      case mmio::kMagicValue:
        return 0x74726976;
      case mmio::kVersion:
        return 2;
      case mmio::kDeviceId:
        return FakeVirtioDevice::kType;
      case mmio::kVendorId:
        return MmioTransport::kVendorId;
      case mmio::kDeviceFeatures:
        return device_select_ == 0   ? static_cast<std::uint32_t>(offered)
               : device_select_ == 1 ? static_cast<std::uint32_t>(offered >> 32)
                                     : 0;
      case mmio::kQueueNumMax:
        return queue_select_ < kLimits.size() ? kLimits.at(queue_select_) : 0;
      case mmio::kQueueReady:
        return queue_select_ < queues_.size() && queues_[queue_select_].ready ? 1 : 0;
      case mmio::kInterruptStatus:
        return interrupts_;
      case mmio::kStatus:
        return status_;
      case mmio::kConfigGeneration:
        return generation_;
      default:
        return UINT32_MAX;
    }
  }

  void compare() {
    read(mmio::kStatus, 4);
    read(mmio::kInterruptStatus, 4);
    read(mmio::kQueueReady, 4);
    read(mmio::kConfigGeneration, 4);
    const bool same = device_.activations == activations_ && device_.failed_activations == failed_ &&
                      device_.resets == resets_ && device_.stopped.size() == stops_ &&
                      device_.accepted.size() == accepted_ && line_.count() == edges_ &&
                      device_.configuration == configuration_;
    if (!same) {
      differ("the device was asked for something else");
    }
    // What is shown is what is read.
    for (std::uint64_t offset = 0; offset < MmioTransport::kWindow; offset += sizeof(std::uint32_t)) {
      if (shown_.at(offset / sizeof(std::uint32_t)) != window_.read(offset, 4)) {
        differ("register " + std::to_string(offset) + " is shown otherwise");
      }
    }
    const MmioTransportState state = transport_->state();
    for (std::size_t i = 0; i < queues_.size(); ++i) {
      const MmioQueueRegisters& queue = state.queues.at(i);
      const ModelQueue& model = queues_[i];
      if (queue.size != model.size || queue.ready != model.ready ||
          queue.descriptor_table != model.parts[0] || queue.available_ring != model.parts[1] ||
          queue.used_ring != model.parts[2]) {
        differ("queue " + std::to_string(i) + " was set up otherwise");
      }
    }
  }

  GuestMemory memory_ = make_memory();
  CountedLine line_;
  ManualRegistrar registrar_;
  FakeVirtioDevice device_{std::vector<std::uint16_t>(kLimits.begin(), kLimits.end())};
  std::array<std::uint32_t, MmioTransport::kWindow / sizeof(std::uint32_t)> shown_{};
  std::unique_ptr<MmioTransport> transport_ =
      std::move(*MmioTransport::create(device_, memory_, line_, registrar_, shown_));
  BusWindow window_{*transport_};

  std::vector<std::uint8_t> configuration_ = device_.configuration;
  std::uint32_t status_ = 0;
  std::uint32_t device_select_ = 0;
  std::uint32_t driver_select_ = 0;
  std::uint32_t queue_select_ = 0;
  std::uint32_t interrupts_ = 0;
  std::uint32_t generation_ = 0;
  std::array<std::uint32_t, 2> words_{};
  bool beyond_ = false;
  std::vector<ModelQueue> queues_ = {{.size = kLimits[0]}, {.size = kLimits[1]}, {.size = kLimits[2]}};
  bool doorbell_ = false;
  int activations_ = 0;
  int failed_ = 0;
  int resets_ = 0;
  std::size_t stops_ = 0;
  std::size_t accepted_ = 0;
  int edges_ = 0;
  std::optional<std::string> difference_;
};

}  // namespace mayfly::testing
