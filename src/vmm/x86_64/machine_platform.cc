// The parts of the machine that only x86-64 has.
#include <utility>

#include "base/log.h"
#include "boot/x86_64/layout.h"
#include "kvm/x86_64/cpuid.h"
#include "kvm/x86_64/msrs.h"
#include "kvm/x86_64/vcpu_state.h"
#include "vmm/machine.h"

namespace mayfly {

Result<Vm> Machine::create_platform_vm(const Kvm& kvm, const GuestMemory& memory) {
  return kvm.create_vm(memory.regions(), VmOptions{.tss = GuestAddress(x86_64::layout::kTss)});
}

Result<void> Machine::connect_devices() {
  namespace layout = x86_64::layout;
  MAYFLY_TRY(vm_.register_irqfd(serial_line_.event(), layout::kSerialIrq));
  MAYFLY_TRY(ports_.insert(layout::kSerialPort, Serial16550::kRegisterCount, serial_, "serial port"));
  MAYFLY_TRY(ports_.insert(layout::kI8042DataPort, 1, i8042_.data_port(), "i8042 data port"));
  MAYFLY_TRY(ports_.insert(layout::kI8042CommandPort, 1, i8042_.command_port(), "i8042 command port"));
  MAYFLY_TRY(ports_.insert(layout::kPowerPort, PowerDevice::kSize, power_, "ACPI power registers"));
  if (boot_mark_) {
    MAYFLY_TRY(mmio_.insert(layout::kBootMark, BootMark::kSize, *boot_mark_, "boot mark"));
  }
  for (std::uint32_t index = 0; index < virtio_.size(); ++index) {
    MAYFLY_TRY(connect_virtio(*virtio_[index], index));
  }
  return {};
}

Result<void> Machine::connect_virtio(VirtioSlot& slot, std::uint32_t index) {
  const x86_64::VirtioPlace place = x86_64::virtio_place(index);
  MAYFLY_TRY(mmio_.insert(place.base, MmioTransport::kWindow, slot.transport(), slot.device().name()));
  MAYFLY_TRY(vm_.register_irqfd(slot.line().event(), place.gsi));
  // Without a length: KVM then need not decode the guest's instruction to see what it writes.
  return vm_.register_doorbell(slot.transport().doorbell(), {.space = Doorbell::Space::kMmio,
                                                             .address = place.base + MmioTransport::kQueueNotify,
                                                             .length = 0,
                                                             .value = std::nullopt});
}

Result<std::vector<kvm_cpuid_entry2>> Machine::guest_cpuid(const Kvm& kvm, const MachineConfig& config) {
  MAYFLY_TRY_ASSIGN(const auto supported, x86_64::supported_cpuid(kvm));
  return x86_64::make_guest_cpuid(supported,
                                  {.vcpu_count = config.vcpu_count,
                                   .smt = config.smt,
                                   .tsc_deadline = kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0});
}

Result<void> Machine::create_cpus(std::vector<kvm_cpuid_entry2> cpuid, std::uint32_t count) {
  const CpuBuses buses{ports_, mmio_, &power_line_};
  for (std::uint32_t index = 0; index < count; ++index) {
    MAYFLY_TRY_ASSIGN(Vcpu vcpu, vm_.create_vcpu(index));
    // CPUID before MSRs: from Linux 6.13 on KVM refuses MSRs that the CPUID it knows does not have.
    x86_64::set_vcpu_id(cpuid, index);
    MAYFLY_TRY(x86_64::set_cpuid(vcpu, cpuid));
    MAYFLY_TRY_ASSIGN(
        const auto refused,
        x86_64::set_msrs_that_exist(x86_64::boot_msrs(), [&](std::span<const kvm_msr_entry> entries) {
          return x86_64::set_msrs(vcpu, entries);
        }));
    for (const std::uint32_t msr : refused) {
      LOG_WARN("vCPU %u: this KVM does not take %s: left as it is", index, x86_64::msr_name(msr).c_str());
    }
    MAYFLY_TRY(x86_64::connect_local_interrupts(vcpu));
    cpus_.push_back(std::make_unique<KvmCpu>(std::move(vcpu), buses, trace_));
  }
  return {};
}

}  // namespace mayfly
