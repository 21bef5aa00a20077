#include "kvm/x86_64/vcpu_state.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kvm/ioctl.h"

namespace mayfly::x86_64 {
namespace {

using kvm_detail::call;
using kvm_detail::command;
using kvm_detail::CountedArray;
using kvm_detail::CountHeader;
using kvm_detail::read_state;

// See CountHeader.
constexpr unsigned long kGetSupportedCpuid = _IOWR(KVMIO, 0x05, CountHeader);
constexpr unsigned long kSetCpuid2 = _IOW(KVMIO, 0x90, CountHeader);
constexpr unsigned long kGetMsrs = _IOWR(KVMIO, 0x88, CountHeader);
constexpr unsigned long kSetMsrs = _IOW(KVMIO, 0x89, CountHeader);

// The kernel's own bound, KVM_MAX_CPUID_ENTRIES.
constexpr std::uint32_t kMaxCpuidEntries = 256;

// Offsets in the local APIC's register page, and delivery modes (SDM vol. 3, 11.5.1).
constexpr std::size_t kLvtLint0 = 0x350;
constexpr std::size_t kLvtLint1 = 0x360;
constexpr std::uint32_t kDeliveryModeMask = 0x700;
constexpr std::uint32_t kDeliveryExtInt = 0x700;
constexpr std::uint32_t kDeliveryNmi = 0x400;
constexpr std::uint32_t kLvtMasked = 1U << 16;

void set_delivery(kvm_lapic_state& state, std::size_t offset, std::uint32_t mode) {
  std::uint32_t entry = 0;
  std::memcpy(&entry, &state.regs[offset], sizeof entry);
  entry = (entry & ~(kDeliveryModeMask | kLvtMasked)) | mode;
  std::memcpy(&state.regs[offset], &entry, sizeof entry);
}

}  // namespace

Result<std::vector<kvm_cpuid_entry2>> supported_cpuid(const Kvm& kvm) {
  CountedArray<kvm_cpuid_entry2> array(kMaxCpuidEntries);
  MAYFLY_TRY(call(kvm.descriptor(), kGetSupportedCpuid, array.get(),
                  "ask for the processor features that guests can have (KVM_GET_SUPPORTED_CPUID)"));
  return array.elements();
}

Result<void> set_cpuid(const Vcpu& vcpu, std::span<const kvm_cpuid_entry2> entries) {
  if (entries.size() > kMaxCpuidEntries) {
    return fail(ErrorCode::kInvalidArgument,
                std::to_string(entries.size()) + " CPUID entries: KVM takes 256 at most");
  }
  CountedArray<kvm_cpuid_entry2> array(entries);
  return command(vcpu.descriptor(), kSetCpuid2, array.get(),
                 "set the processor features of vCPU " + std::to_string(vcpu.id()) + " (KVM_SET_CPUID2)");
}

Result<std::size_t> set_msrs(const Vcpu& vcpu, std::span<const kvm_msr_entry> entries) {
  CountedArray<kvm_msr_entry> array(entries);
  MAYFLY_TRY_ASSIGN(const int count, call(vcpu.descriptor(), kSetMsrs, array.get(),
                                          "set model-specific registers (KVM_SET_MSRS)"));
  return static_cast<std::size_t>(count);
}

Result<std::vector<kvm_msr_entry>> get_msrs(const Vcpu& vcpu, std::span<const std::uint32_t> indices) {
  std::vector<kvm_msr_entry> wanted(indices.size());
  std::transform(indices.begin(), indices.end(), wanted.begin(), [](std::uint32_t index) {
    return kvm_msr_entry{index, 0, 0};
  });
  CountedArray<kvm_msr_entry> array(wanted);
  MAYFLY_TRY_ASSIGN(const int count, call(vcpu.descriptor(), kGetMsrs, array.get(),
                                          "read model-specific registers (KVM_GET_MSRS)"));
  return array.first(static_cast<std::size_t>(count));
}

Result<kvm_regs> get_regs(const Vcpu& vcpu) {
  return read_state<kvm_regs>(vcpu.descriptor(), KVM_GET_REGS, "read registers (KVM_GET_REGS)");
}
Result<void> set_regs(const Vcpu& vcpu, const kvm_regs& registers) {
  return command(vcpu.descriptor(), KVM_SET_REGS, &registers, "set registers (KVM_SET_REGS)");
}
Result<kvm_sregs> get_sregs(const Vcpu& vcpu) {
  return read_state<kvm_sregs>(vcpu.descriptor(), KVM_GET_SREGS, "read special registers (KVM_GET_SREGS)");
}
Result<void> set_sregs(const Vcpu& vcpu, const kvm_sregs& registers) {
  return command(vcpu.descriptor(), KVM_SET_SREGS, &registers, "set special registers (KVM_SET_SREGS)");
}
Result<void> set_fpu(const Vcpu& vcpu, const kvm_fpu& state) {
  return command(vcpu.descriptor(), KVM_SET_FPU, &state, "set floating-point registers (KVM_SET_FPU)");
}
Result<kvm_lapic_state> get_lapic(const Vcpu& vcpu) {
  return read_state<kvm_lapic_state>(vcpu.descriptor(), KVM_GET_LAPIC, "read the local APIC (KVM_GET_LAPIC)");
}
Result<void> set_lapic(const Vcpu& vcpu, const kvm_lapic_state& state) {
  return command(vcpu.descriptor(), KVM_SET_LAPIC, &state, "set the local APIC (KVM_SET_LAPIC)");
}

kvm_fpu initial_fpu() {
  kvm_fpu state{};
  state.fcw = 0x37f;
  state.mxcsr = 0x1f80;
  return state;
}

void set_local_vectors(kvm_lapic_state& state) {
  set_delivery(state, kLvtLint0, kDeliveryExtInt);
  set_delivery(state, kLvtLint1, kDeliveryNmi);
}

Result<void> connect_local_interrupts(const Vcpu& vcpu) {
  MAYFLY_TRY_ASSIGN(kvm_lapic_state state, get_lapic(vcpu));
  set_local_vectors(state);
  return set_lapic(vcpu, state);
}

Result<std::uint32_t> tsc_khz(const Vcpu& vcpu) {
  MAYFLY_TRY_ASSIGN(const int khz, call(vcpu.descriptor(), KVM_GET_TSC_KHZ, 0UL,
                                        "ask for the clock rate of a vCPU (KVM_GET_TSC_KHZ)"));
  return static_cast<std::uint32_t>(khz);
}

}  // namespace mayfly::x86_64
