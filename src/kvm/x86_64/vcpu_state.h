// The registers of an x86-64 vCPU, as the kernel's own plain structures.
#pragma once

#include <linux/kvm.h>

#include <span>
#include <vector>

#include "base/result.h"
#include "kvm/kvm.h"
#include "kvm/vcpu.h"

namespace mayfly::x86_64 {

// KVM_GET_SUPPORTED_CPUID (api.rst 4.46). Takes 0.3 ms where CPUID itself traps: ask once, and give the
// answer to make_guest_cpuid().
Result<std::vector<kvm_cpuid_entry2>> supported_cpuid(const Kvm& kvm);

// KVM_SET_CPUID2 (api.rst 4.20). Before any MSR is set (from Linux 6.13 on KVM refuses MSRs that the CPUID it
// knows does not have) and before the first run. Error kInvalidArgument for a set that KVM refuses.
Result<void> set_cpuid(const Vcpu& vcpu, std::span<const kvm_cpuid_entry2> entries);

// KVM_SET_MSRS (api.rst 4.19): sets `entries` in order and answers how many were set before one was refused.
Result<std::size_t> set_msrs(const Vcpu& vcpu, std::span<const kvm_msr_entry> entries);
// KVM_GET_MSRS (api.rst 4.18): the values of `indices`, up to the first that is refused.
Result<std::vector<kvm_msr_entry>> get_msrs(const Vcpu& vcpu, std::span<const std::uint32_t> indices);

// KVM_GET_REGS ... (api.rst 4.11 to 4.14, 4.21, 4.22, 4.57, 4.58).
Result<kvm_regs> get_regs(const Vcpu& vcpu);
Result<void> set_regs(const Vcpu& vcpu, const kvm_regs& registers);
Result<kvm_sregs> get_sregs(const Vcpu& vcpu);
Result<void> set_sregs(const Vcpu& vcpu, const kvm_sregs& registers);
Result<void> set_fpu(const Vcpu& vcpu, const kvm_fpu& state);
Result<kvm_lapic_state> get_lapic(const Vcpu& vcpu);
Result<void> set_lapic(const Vcpu& vcpu, const kvm_lapic_state& state);

// The x87 and SSE state that FNINIT and reset leave (SDM vol. 1, 8.1.5 and 11.6.4).
kvm_fpu initial_fpu();

// Connects the local APIC's pins as firmware does (MultiProcessor Specification 1.4, 3.6.2.2 "virtual wire
// mode"): LINT0 takes the PIC's interrupts (ExtINT), LINT1 the NMI.
Result<void> connect_local_interrupts(const Vcpu& vcpu);
// As above, on the register page alone.
void set_local_vectors(kvm_lapic_state& state);

// KVM_GET_TSC_KHZ (api.rst 4.56): the guest's time-stamp counter, in kHz.
Result<std::uint32_t> tsc_khz(const Vcpu& vcpu);

}  // namespace mayfly::x86_64
