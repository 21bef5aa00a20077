// Which processor a guest sees: pure functions from what KVM supports to what a vCPU is given.
//
// References: SDM = Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID, and volume
// 3, 9.9.1 (topology); APM = AMD64 Architecture Programmer's Manual, volume 3, appendix E; api.rst = the KVM
// API.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace mayfly::x86_64 {

enum class CpuVendor : std::uint8_t { kIntel, kAmd, kHygon, kOther };

// From leaf 0; kOther where there is none.
CpuVendor vendor_of(std::span<const kvm_cpuid_entry2> entries);

// EAX, EBX, ECX, EDX of leaves 0x80000002, 3 and 4: 48 characters, ending in NUL.
using BrandString = std::array<std::uint32_t, 12>;

// This processor's, by the CPUID instruction; zeros where it has none.
BrandString host_brand();

struct GuestCpuConfig {
  std::uint32_t vcpu_count = 1;  // 1 to kMaxTopologyVcpus
  bool smt = false;              // two vCPUs share a core; then the count is 1 or even
  bool pmu = false;              // performance counters for the guest
  bool tsc_deadline = true;  // KVM_CAP_TSC_DEADLINE_TIMER: its CPUID bit alone does not say (api.rst 4.46)
  BrandString (*brand)() = &host_brand;  // asked where KVM leaves the brand string blank
};

// More do not fit the core count of leaf 4 (6 bits).
inline constexpr std::uint32_t kMaxTopologyVcpus = 64;

// The CPUID of every vCPU of a guest but for the fields that set_vcpu_id() fills, from the answer to
// KVM_GET_SUPPORTED_CPUID. One socket, one node; a vCPU's APIC id is its index; one last-level cache for all,
// the other levels a core's own. What the guest does not get, whatever KVM supports:
// - nested virtualization (VMX, SVM): by far KVM's largest attack surface, and state that snapshots would
//   carry;
// - AMX: its state is 8 KiB a vCPU that KVM supports only after arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM);
//   without it KVM leaves the state out of leaf 0xd but still names the instructions, which would be a lie;
// - SGX, processor trace, memory encryption: each needs resources that this machine does not set up;
// - WAITPKG: user code could hold a host core without the host seeing it idle;
// - counters and branch records, unless `pmu`;
// - on AMD and Hygon, IA32_ARCH_CAPABILITIES: KVM emulates it, but no such processor has it.
// Errors: kInvalidArgument for a count or an smt that does not fit, kInternal where KVM names no leaf 0 or 1.
Result<std::vector<kvm_cpuid_entry2>> make_guest_cpuid(std::span<const kvm_cpuid_entry2> supported,
                                                       const GuestCpuConfig& config);

// Whether the whole leaf belongs to what guests do not get, counters included: make_guest_cpuid() leaves it
// out unless `pmu`.
bool is_withheld_leaf(std::uint32_t function, bool pmu = false);

// Takes out entries of zeros: within the leaves that a range has, what is not listed reads as zeros, and KVM
// looks through the list at each CPUID instruction of the guest, of which a kernel's boot has hundreds.
void drop_blank_entries(std::vector<kvm_cpuid_entry2>& entries);

// Makes `guest`, from make_guest_cpuid(), that of the vCPU with that index: its APIC ids and core id. May be
// called again and again for one vCPU after the other.
void set_vcpu_id(std::span<kvm_cpuid_entry2> guest, std::uint32_t index);

}  // namespace mayfly::x86_64
