// struct boot_params, the "zero page" of the Linux/x86 boot protocol.
#pragma once

#include "base/result.h"
#include "boot/boot_plan.h"
#include "memory/guest_memory.h"

namespace mayfly::x86_64 {

// Writes the zero page at layout::kZeroPage, pointing to the command line at layout::kCommandLine (not
// written here). For a bzImage it begins from the image's own setup header. kInvalidArgument where memory is
// in more pieces than the page can list; kOutOfRange where there is no RAM.
Result<void> write_zero_page(GuestMemory& memory, const BootPlan& plan);

}  // namespace mayfly::x86_64
