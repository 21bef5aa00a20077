// Dispatch of a vCPU's port and MMIO accesses to devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mayfly {

// A device with registers on a bus. Calls come from any vCPU thread, several at once: a device guards its own
// state. `offset` and the access's size (1, 2, 4 or 8 bytes) are the guest's choice; together they lie within
// the device's range.
class BusDevice {
 public:
  virtual ~BusDevice() = default;
  // Fills all of `data`, little-endian. What the device has no register for reads as all ones unless its own
  // specification says otherwise.
  virtual void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) = 0;
  virtual void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) = 0;
};

// One address space (ports, or MMIO). Built before the vCPUs start and not changed after: read() and write()
// are lock-free and thread-safe.
class Bus {
 public:
  explicit Bus(std::string_view name) : name_(name) {}

  // Puts `device` (borrowed; outlives the bus's last access) at [base, base + size). Errors: kInvalidArgument
  // for size 0, a range that wraps, or one that overlaps a range already there, naming both.
  Result<void> insert(std::uint64_t base, std::uint64_t size, BusDevice& device,
                      std::string_view device_name);

  // False where no device answers for the whole access: `data` is then all ones on a read, a write is
  // dropped, and the caller counts it.
  bool read(std::uint64_t address, std::span<std::uint8_t> data) const;
  bool write(std::uint64_t address, std::span<const std::uint8_t> data) const;

 private:
  struct Entry {
    std::uint64_t base;
    std::uint64_t size;
    BusDevice* device;
    std::string name;
  };
  // The entry that holds all of [address, address + size), or null.
  const Entry* find(std::uint64_t address, std::size_t size) const;

  std::string name_;
  std::vector<Entry> entries_;  // ascending by base
};

}  // namespace mayfly
