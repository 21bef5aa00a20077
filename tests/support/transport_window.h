// A virtio-mmio transport of ours as the driver fake sees it, and the interrupt line behind it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <span>

#include "devices/bus/bus.h"
#include "devices/bus/interrupt_line.h"
#include "support/virtio_driver/mmio_driver.h"

namespace mayfly::testing {

class CountingLine final : public InterruptLine {
 public:
  void trigger() override { ++triggers; }
  std::atomic<int> triggers{0};
};

class TransportWindow final : public MmioWindow {
 public:
  explicit TransportWindow(BusDevice& device) : device_(device) {}
  std::uint64_t read(std::uint64_t offset, unsigned width) override {
    std::array<std::uint8_t, 8> bytes{};
    device_.bus_read(offset, std::span(bytes).first(width));
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data(), sizeof(value));
    return value;
  }
  void write(std::uint64_t offset, unsigned width, std::uint64_t value) override {
    std::array<std::uint8_t, 8> bytes{};
    std::memcpy(bytes.data(), &value, sizeof(value));
    device_.bus_write(offset, std::span<const std::uint8_t>(bytes).first(width));
  }

 private:
  BusDevice& device_;
};

}  // namespace mayfly::testing
