#include "boot/x86_64/memory_map.h"

#include <algorithm>

#include "boot/x86_64/layout.h"

namespace mayfly::x86_64 {

std::vector<MemoryMapEntry> make_memory_map(const GuestMemory& memory) {
  std::vector<MemoryMapEntry> map;
  // Adds what [begin, last] has of `ram`.
  const auto add = [&map](const GuestRange& ram, std::uint64_t begin, std::uint64_t last, MemoryType type) {
    const std::uint64_t low = std::max(ram.base().value(), begin);
    const std::uint64_t high = std::min(ram.last().value(), last);
    if (low <= high) {
      if (const auto range = GuestRange::make(GuestAddress(low), high - low + 1)) {
        map.push_back({*range, type});
      }
    }
  };
  for (const MemoryRegion& region : memory.regions()) {
    add(region.range, 0, layout::kSystemAreaStart - 1, MemoryType::kRam);
    add(region.range, layout::kSystemAreaStart, layout::kSystemAreaEnd - 1, MemoryType::kReserved);
    add(region.range, layout::kSystemAreaEnd, UINT64_MAX, MemoryType::kRam);
  }
  return map;
}

}  // namespace mayfly::x86_64
