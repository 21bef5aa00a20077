#include "devices/bus/bus.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "base/checked.h"
#include "base/text.h"

namespace mayfly {
namespace {

// "serial at 0x3f8-0x3ff"
std::string describe(std::string_view name, std::uint64_t base, std::uint64_t last) {
  return std::string(name).append(" at ").append(hex(base)).append("-").append(hex(last));
}

}  // namespace

Result<void> Bus::insert(std::uint64_t base, std::uint64_t size, BusDevice& device,
                         std::string_view device_name) {
  if (size == 0) {
    return fail(ErrorCode::kInvalidArgument, name_ + " bus: " + std::string(device_name) + " has size 0");
  }
  // Ranges are compared by their last address: one that ends with the address space has no representable end.
  const auto last = checked_add(base, size - 1);
  if (!last) {
    return fail(ErrorCode::kInvalidArgument, name_ + " bus: " + std::string(device_name) + " at " +
                                                 hex(base) + " with size " + hex(size) +
                                                 " goes beyond the end of the address space");
  }
  const auto next = std::upper_bound(entries_.begin(), entries_.end(), base,
                                     [](std::uint64_t address, const Entry& e) { return address < e.base; });
  const Entry* other = nullptr;
  if (next != entries_.end() && next->base <= *last) {
    other = &*next;
  } else if (next != entries_.begin() && base - std::prev(next)->base < std::prev(next)->size) {
    other = &*std::prev(next);
  }
  if (other != nullptr) {
    return fail(ErrorCode::kInvalidArgument,
                name_ + " bus: " + describe(device_name, base, *last) + " overlaps " +
                    describe(other->name, other->base, other->base + (other->size - 1)));
  }
  entries_.insert(next, Entry{base, size, &device, std::string(device_name)});
  return {};
}

const Bus::Entry* Bus::find(std::uint64_t address, std::size_t size) const {
  const auto next = std::upper_bound(entries_.begin(), entries_.end(), address,
                                     [](std::uint64_t a, const Entry& e) { return a < e.base; });
  if (size == 0 || next == entries_.begin()) {
    return nullptr;
  }
  const Entry& entry = *std::prev(next);
  const std::uint64_t offset = address - entry.base;
  // Written so that nothing overflows: `address + size` may.
  if (offset >= entry.size || size > entry.size - offset) {
    return nullptr;
  }
  return &entry;
}

bool Bus::read(std::uint64_t address, std::span<std::uint8_t> data) const {
  const Entry* entry = find(address, data.size());
  if (entry == nullptr) {
    std::fill(data.begin(), data.end(), std::numeric_limits<std::uint8_t>::max());
    return false;
  }
  entry->device->bus_read(address - entry->base, data);
  return true;
}

bool Bus::write(std::uint64_t address, std::span<const std::uint8_t> data) const {
  const Entry* entry = find(address, data.size());
  if (entry == nullptr) {
    return false;
  }
  entry->device->bus_write(address - entry->base, data);
  return true;
}

}  // namespace mayfly
