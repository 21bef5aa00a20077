// What a guest is told about its memory: one map for all boot protocols.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/guest_memory.h"

namespace mayfly::x86_64 {

// The numbers are those of an E820 map (ACPI specification, "System Address Map Interfaces"); PVH has the
// same.
enum class MemoryType : std::uint32_t { kRam = 1, kReserved = 2 };

struct MemoryMapEntry {
  GuestRange range;
  MemoryType type;

  friend bool operator==(const MemoryMapEntry&, const MemoryMapEntry&) = default;
};

// All RAM, but for the system area below 1 MiB, which is reserved. Ascending, not overlapping.
std::vector<MemoryMapEntry> make_memory_map(const GuestMemory& memory);

}  // namespace mayfly::x86_64
