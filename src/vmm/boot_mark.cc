#include "vmm/boot_mark.h"

#include <algorithm>

#include "base/log.h"

namespace mayfly {

void BootMark::bus_read(std::uint64_t /*offset*/, std::span<std::uint8_t> data) {
  std::fill(data.begin(), data.end(), std::uint8_t{0});
}

void BootMark::bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) {
  if (offset == 0 && data[0] == kMagic && !marked_.test_and_set()) {
    LOG_INFO("guest boot mark");
    on_mark_();
  }
}

}  // namespace mayfly
