// The last step before a guest runs: everything that its kernel finds in memory and registers at its entry.
#pragma once

#include "base/result.h"
#include "boot/boot_plan.h"
#include "boot/x86_64/cpu_state.h"
#include "memory/guest_memory.h"

namespace mayfly::x86_64 {

// Writes the command line, the zero page or the PVH start info, and the tables that the first vCPU's state
// needs, into fresh memory in which the plan's kernel and initrd lie already. ACPI tables, if the plan names
// an RSDP, are the caller's to write. kInvalidArgument where the command line is longer than the kernel
// takes; kOutOfRange where guest RAM does not reach over layout's low addresses.
Result<CpuBootState> prepare_boot(GuestMemory& memory, const BootPlan& plan);

}  // namespace mayfly::x86_64
