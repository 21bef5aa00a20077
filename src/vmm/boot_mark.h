// The register to which a guest writes when it considers itself booted. Part of the machine only while a boot
// trace is taken; at the address and with the value of the dialect's boot timer.
#pragma once

#include <cstdint>
#include <span>

#include "devices/bus/bus.h"
#include "vmm/boot_trace.h"

namespace mayfly {

// One page at layout::kBootMark. A byte kMagic written to its first address is the mark, the first time;
// everything else is ignored, and reads give zeros. Thread-safe.
class BootMark final : public BusDevice {
 public:
  static constexpr std::uint64_t kSize = 0x1000;  // bytes
  static constexpr std::uint8_t kMagic = 123;

  explicit BootMark(BootTrace& trace) : trace_(trace) {}

  void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) override;
  void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) override;

 private:
  BootTrace& trace_;
};

}  // namespace mayfly
