// The register to which a guest writes when it considers itself booted. Part of the machine only where
// somebody asks for the mark; at the address and with the value of the dialect's boot timer.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "devices/bus/bus.h"

namespace mayfly {

// One page at layout::kBootMark. A byte kMagic written to its first address is the mark, the first time;
// everything else is ignored, and reads give zeros. Thread-safe.
class BootMark final : public BusDevice {
 public:
  static constexpr std::uint64_t kSize = 0x1000;  // bytes
  static constexpr std::uint8_t kMagic = 123;

  // `on_mark` is called once at most, on the thread that writes.
  explicit BootMark(std::function<void()> on_mark) : on_mark_(std::move(on_mark)) {}

  void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) override;
  void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) override;

 private:
  const std::function<void()> on_mark_;
  std::atomic_flag marked_;
};

}  // namespace mayfly
