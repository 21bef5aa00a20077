#include "boot/x86_64/prepare_boot.h"

#include "boot/x86_64/layout.h"
#include "boot/x86_64/pvh.h"
#include "boot/x86_64/zero_page.h"

namespace mayfly::x86_64 {

Result<CpuBootState> prepare_boot(GuestMemory& memory, const BootPlan& plan) {
  MAYFLY_TRY(
      plan.command_line.write(memory, GuestAddress(layout::kCommandLine), plan.kernel.command_line_max));
  const BootEntry& entry = plan.kernel.entry;
  if (entry.protocol == BootProtocol::kPvh) {
    MAYFLY_TRY(write_pvh_start_info(memory, plan));
    return make_pvh_state(memory, entry.entry);
  }
  MAYFLY_TRY(write_zero_page(memory, plan));
  return make_linux64_state(memory, entry.entry);
}

}  // namespace mayfly::x86_64
