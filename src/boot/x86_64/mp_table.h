// The MultiProcessor table (Intel's MultiProcessor Specification 1.4): what a guest without ACPI knows its
// processors and the I/O APIC by. Without it, such a guest has one processor and the PICs' 16 lines.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "memory/guest_memory.h"

namespace mayfly::x86_64 {

// The floating pointer structure and behind it the configuration table, as one piece that is to stand at
// layout::kMpTable: vCPU n has the local APIC n, and line n of the ISA bus is pin n of the I/O APIC, rising
// edges, for all 24. Error kInvalidArgument for another number of vCPUs than 1 to layout::kMaxVcpus.
Result<std::vector<std::uint8_t>> build_mp_table(std::uint32_t vcpu_count);

// Writes it to layout::kMpTable, the last KiB of base memory, where the specification has a system look.
// Errors: as above; kOutOfRange where that is not RAM.
Result<void> write_mp_table(std::uint32_t vcpu_count, GuestMemory& memory);

}  // namespace mayfly::x86_64
