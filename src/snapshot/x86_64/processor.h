// What an x86-64 vCPU and what the vCPUs share look like in a snapshot, and what a person is told of them.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "kvm/x86_64/cpu_template.h"
#include "kvm/x86_64/saved_state.h"
#include "snapshot/codec.h"

namespace mayfly::snapshot_detail {

// The architecture's number in a file's header.
inline constexpr std::uint8_t kArchitecture = 1;
inline constexpr const char* kArchitectureName = "x86-64";

// The vendor's number in a file's header: 0 for one that has none.
std::uint8_t vendor_code(const x86_64::VcpuState& vcpu);
// "Intel".
const char* vendor_name(std::uint8_t code);
// The processor's own name, as the guest sees it; empty where it sees none.
std::string brand_of(const x86_64::VcpuState& vcpu);

// What no KVM can have given. A clause.
std::optional<std::string> what_is_wrong(const x86_64::VcpuState& vcpu);

// KVM's own: the sizes are its ABI.
template <>
struct IsKernelStructure<kvm_regs> : std::true_type {};
template <>
struct IsKernelStructure<kvm_sregs> : std::true_type {};
template <>
struct IsKernelStructure<kvm_xcrs> : std::true_type {};
template <>
struct IsKernelStructure<kvm_debugregs> : std::true_type {};
template <>
struct IsKernelStructure<kvm_lapic_state> : std::true_type {};
template <>
struct IsKernelStructure<kvm_vcpu_events> : std::true_type {};
template <>
struct IsKernelStructure<kvm_irqchip> : std::true_type {};
template <>
struct IsKernelStructure<kvm_pit_state2> : std::true_type {};
static_assert(sizeof(kvm_regs) == 144 && sizeof(kvm_sregs) == 312 && sizeof(kvm_xcrs) == 392 &&
              sizeof(kvm_debugregs) == 128 && sizeof(kvm_lapic_state) == 1024 &&
              sizeof(kvm_vcpu_events) == 64 && sizeof(kvm_irqchip) == 520 && sizeof(kvm_pit_state2) == 112);

template <typename Codec>
void fields(Codec& codec, Coded<Codec, kvm_cpuid_entry2>& value) {
  all(codec, value.function, value.index, value.flags, value.eax, value.ebx, value.ecx, value.edx);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, kvm_msr_entry>& value) {
  all(codec, value.index, value.data);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, kvm_mp_state>& value) {
  code(codec, value.mp_state);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, x86_64::VcpuState>& value) {
  auto& [id, cpuid, mp_state, tsc_khz, registers, special, xsave, extended_control, debug, local_apic, msrs,
         events] = value;
  all(codec, id, cpuid, mp_state, tsc_khz, registers, special, xsave, extended_control, debug, local_apic,
      msrs, events);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, x86_64::PlatformState>& value) {
  auto& [first_pic, second_pic, io_apic, timer] = value;
  all(codec, first_pic, second_pic, io_apic, timer);
}

template <>
struct LastOf<x86_64::CpuidRegister> {
  static constexpr auto kValue = x86_64::CpuidRegister::kEdx;
};

template <typename Codec, typename Word>
void code_bits(Codec& codec, Word& value) {
  auto& [mask, bits] = value;
  all(codec, mask, bits);
}
template <typename Codec>
void fields(Codec& codec, Coded<Codec, x86_64::BitChange<std::uint32_t>>& value) {
  code_bits(codec, value);
}
template <typename Codec>
void fields(Codec& codec, Coded<Codec, x86_64::BitChange<std::uint64_t>>& value) {
  code_bits(codec, value);
}
template <typename Codec>
void fields(Codec& codec, Coded<Codec, CapabilityChange>& value) {
  auto& [number, required] = value;
  all(codec, number, required);
}
template <typename Codec>
void fields(Codec& codec, Coded<Codec, x86_64::CpuidRegisterChange>& value) {
  auto& [reg, bits] = value;
  all(codec, reg, bits);
}
template <typename Codec>
void fields(Codec& codec, Coded<Codec, x86_64::CpuidChange>& value) {
  auto& [leaf, subleaf, flags, registers] = value;
  all(codec, leaf, subleaf, flags, registers);
}
template <typename Codec>
void fields(Codec& codec, Coded<Codec, x86_64::MsrChange>& value) {
  auto& [index, bits] = value;
  all(codec, index, bits);
}
template <typename Codec>
void fields(Codec& codec, Coded<Codec, x86_64::CpuTemplate>& value) {
  auto& [capabilities, cpuid, msrs] = value;
  all(codec, capabilities, cpuid, msrs);
}

}  // namespace mayfly::snapshot_detail
