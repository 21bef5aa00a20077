// What an x86-64 virtual machine has before its vCPUs.
#include <cpuid.h>
#include <linux/kvm.h>

#include "kvm/host_kind.h"
#include "kvm/ioctl.h"
#include "kvm/vm.h"
#include "memory/x86_64/ranges.h"

namespace mayfly {

using kvm_detail::command;

namespace {

// Masks every line of both PICs, as firmware leaves them. KVM routes GSI 0-15 to the PICs as well as to the
// IOAPIC, and a guest with hardware-reduced ACPI knows of no PIC: an edge on a PIC that nobody has
// initialised would reach it through LINT0 as vector 0 to 15, an exception. A guest that uses the PICs
// unmasks what it wants. KVM_GET_IRQCHIP, KVM_SET_IRQCHIP: api.rst 4.25, 4.26.
Result<void> mask_pics(const UniqueFd& vm) {
  for (const __u32 id : {KVM_IRQCHIP_PIC_MASTER + 0U, KVM_IRQCHIP_PIC_SLAVE + 0U}) {
    kvm_irqchip chip{};
    chip.chip_id = id;
    MAYFLY_TRY(command(vm, KVM_GET_IRQCHIP, &chip, "read a PIC (KVM_GET_IRQCHIP)"));
    chip.chip.pic.imr = 0xff;
    MAYFLY_TRY(command(vm, KVM_SET_IRQCHIP, &chip, "mask a PIC (KVM_SET_IRQCHIP)"));
  }
  return {};
}

}  // namespace

Result<void> Vm::create_platform(const VmOptions& options) {
  if (!options.pmu) {
    // Zeroed CPUID leaves hide Intel's counters; AMD's first four are found by family and need this
    // (KVM_CAP_PMU_CAPABILITY, api.rst 8.35). It fails where KVM was loaded without counters, and before
    // Linux 5.18, where such a guest sees those four.
    kvm_enable_cap disable{};
    disable.cap = KVM_CAP_PMU_CAPABILITY;
    disable.args[0] = KVM_PMU_CAP_DISABLE;
    static_cast<void>(command(fd_, KVM_ENABLE_CAP, &disable, ""));
  }

  // KVM_SET_TSS_ADDR (api.rst 4.36). The identity map's address (4.37) keeps its default, the page before.
  MAYFLY_TRY(command(fd_, KVM_SET_TSS_ADDR, static_cast<unsigned long>(x86_64::kRealModePages),
                     "set aside pages for real mode (KVM_SET_TSS_ADDR)"));

  // KVM_CREATE_IRQCHIP (api.rst 4.24): two PICs, one IOAPIC of 24 lines, a local APIC for each vCPU to come,
  // and the default routes between them.
  MAYFLY_TRY(command(fd_, KVM_CREATE_IRQCHIP, 0UL, "create the interrupt controllers (KVM_CREATE_IRQCHIP)"));

  MAYFLY_TRY(mask_pics(fd_));
  return options.timer ? create_timer() : Result<void>();
}

// KVM_CREATE_PIT2 (api.rst 4.71). Port 0x61 is answered in the kernel too, because guests calibrate their
// clocks through it.
Result<void> Vm::create_timer() const {
  kvm_pit_config timer{};
  timer.flags = KVM_PIT_SPEAKER_DUMMY;
  return command(fd_, KVM_CREATE_PIT2, &timer, "create the timer (KVM_CREATE_PIT2)");
}

// MAXPHYADDR (SDM volume 3, 4.1.4): 36 where the processor does not say.
unsigned host_address_bits() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(0x80000008, &eax, &ebx, &ecx, &edx) != 0 ? eax & 0xffU : 36;
}

}  // namespace mayfly
