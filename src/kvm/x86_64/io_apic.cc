#include "kvm/x86_64/io_apic.h"

#include <linux/kvm.h>

#include <string>

#include "kvm/ioctl.h"

namespace mayfly::x86_64 {

static_assert(Vm::kGsiCount == KVM_IOAPIC_NUM_PINS, "interrupt line n is pin n");

Result<bool> guest_takes_line(const Vm& vm, std::uint32_t gsi) {
  if (gsi >= Vm::kGsiCount) {
    return fail(ErrorCode::kInvalidArgument, "there is no interrupt line " + std::to_string(gsi));
  }
  kvm_irqchip chip{};
  chip.chip_id = KVM_IRQCHIP_IOAPIC;
  MAYFLY_TRY(
      kvm_detail::command(vm.descriptor(), KVM_GET_IRQCHIP, &chip, "read the I/O APIC (KVM_GET_IRQCHIP)"));
  // NOLINTNEXTLINE(cppcoreguidelines-pro-bounds-constant-array-index): checked above
  return chip.chip.ioapic.redirtbl[gsi].fields.mask == 0;
}

}  // namespace mayfly::x86_64
