// A virtio device of no type: does what a test tells it to and writes down what its transport asks of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "devices/virtio/transport/virtio_device.h"

namespace mayfly::testing {

// Returns every chain of its queues unwritten, as long as it is active. All but run(), which takes the lock,
// is for a holder of the lock or for a test without other threads.
class FakeVirtioDevice final : public VirtioDevice {
 public:
  static constexpr std::uint32_t kType = 42;
  static constexpr std::uint64_t kOwnFeatures = 0x5 | kFeatureIndirectDesc | kFeatureEventIndex;
  static constexpr std::size_t kConfigurationSize = 24;

  explicit FakeVirtioDevice(std::vector<std::uint16_t> limits = {16, 256}) : limits_(std::move(limits)) {
    for (std::size_t i = 0; i < configuration.size(); ++i) {
      configuration[i] = static_cast<std::uint8_t>(0xa0 + i);
    }
  }

  std::string_view name() const override { return "fake"; }
  std::uint32_t type() const override { return kType; }
  std::uint64_t features() const override { return kOwnFeatures; }
  std::span<const std::uint16_t> queue_limits() const override { return limits_; }

  void read_configuration(std::uint64_t offset, std::span<std::uint8_t> data) override {
    for (std::uint8_t& byte : data) {
      byte = offset < configuration.size() ? configuration[offset] : 0;
      ++offset;
    }
  }
  void write_configuration(std::uint64_t offset, std::span<const std::uint8_t> data) override {
    for (const std::uint8_t byte : data) {
      if (offset < configuration.size()) {
        configuration[offset] = byte;
      }
      ++offset;
    }
    ++configuration_writes;
  }

  void features_accepted(std::uint64_t features) override { accepted.push_back(features); }
  void activate(VirtioActivation activation) override {
    ++activations;
    active = std::move(activation);
  }
  void activation_failed() override { ++failed_activations; }
  void reset() override {
    ++resets;
    active.reset();
    broken = false;
  }
  void stop_queue(std::size_t index) override {
    stopped.push_back(index);
    if (active) {
      active->queues.at(index).reset();
    }
  }
  void process() override {
    ++processed;
    if (!active || broken) {
      return;
    }
    bool interrupt = false;
    for (auto& queue : active->queues) {
      if (queue && !drain(*queue, interrupt)) {
        broken = true;
        transport().needs_reset("a test's queue");
        return;
      }
    }
    if (interrupt) {
      transport().used_buffers();
    }
  }

  // With the lock: what a back end's event does.
  template <typename Do>
  void run(Do what) {
    const MutexLock lock(mutex());
    what(transport());
  }

  std::vector<std::uint8_t> configuration = std::vector<std::uint8_t>(kConfigurationSize);
  int configuration_writes = 0;
  std::vector<std::uint64_t> accepted;
  int activations = 0;
  int failed_activations = 0;
  int resets = 0;
  int processed = 0;
  std::uint64_t completed = 0;  // chains
  std::vector<std::size_t> stopped;
  std::optional<VirtioActivation> active;
  bool broken = false;  // by its driver, until a reset

 private:
  // Until there is nothing left, which it is soon: the driver of a test does not run meanwhile, or stops.
  bool drain(VirtQueue& queue, bool& interrupt) {
    for (;;) {
      auto chain = queue.take();
      if (!chain) {
        return false;
      }
      if (*chain) {
        queue.complete(std::move(**chain), 0);
        ++completed;
        interrupt |= queue.publish();
        continue;
      }
      const auto more = queue.want_doorbell();
      if (!more || !*more) {
        return more.has_value();
      }
    }
  }

  std::vector<std::uint16_t> limits_;
};

}  // namespace mayfly::testing
