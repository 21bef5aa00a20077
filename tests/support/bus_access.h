// Accesses of one byte to a device, as a guest makes most of them.
#pragma once

#include <array>
#include <cstdint>

#include "devices/bus/bus.h"

namespace mayfly::testing {

// A device that leaves `data` as it is gives a byte that no register of the devices holds by chance.
inline std::uint8_t read_byte(BusDevice& device, std::uint64_t offset) {
  std::array<std::uint8_t, 1> data{0x5a};
  device.bus_read(offset, data);
  return data[0];
}

inline void write_byte(BusDevice& device, std::uint64_t offset, std::uint8_t value) {
  device.bus_write(offset, std::array<std::uint8_t, 1>{value});
}

}  // namespace mayfly::testing
