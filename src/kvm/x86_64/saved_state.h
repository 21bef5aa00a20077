// All that KVM keeps of a guest beside its memory: as plain data, read from a vCPU or a VM and put into
// another.
//
// The guest stands still meanwhile. Order of a restore, and why:
//
//   memory                 KVM reads page-directory pointers, and writes the wall clock, into it
//   vCPUs, each by restore_timeless(), then restore_timed()
//   restore_platform()     the I/O APIC raises what was pending in it again, at local APICs that are there
//   Vm::set_clock()        last: from then on the guest's clock runs
//
// References: api.rst = the KVM API; SDM = Intel 64 and IA-32 Architectures Software Developer's Manual.
#pragma once

#include <linux/kvm.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "kvm/kvm.h"
#include "kvm/vcpu.h"
#include "kvm/vm.h"

namespace mayfly::x86_64 {

// One vCPU.
struct VcpuState {
  std::uint32_t id = 0;  // of its local APIC
  std::vector<kvm_cpuid_entry2> cpuid{};
  kvm_mp_state mp_state{};
  std::uint32_t tsc_khz = 0;
  kvm_regs registers{};
  kvm_sregs special{};
  std::vector<std::byte> xsave{};  // as KVM_GET_XSAVE2 gives it
  kvm_xcrs extended_control{};
  kvm_debugregs debug{};
  kvm_lapic_state local_apic{};
  // In the order in which they are set.
  std::vector<kvm_msr_entry> msrs{};
  kvm_vcpu_events events{};
};

// What the vCPUs share.
struct PlatformState {
  kvm_irqchip first_pic{};
  kvm_irqchip second_pic{};
  kvm_irqchip io_apic{};
  kvm_pit_state2 timer{};
};

// The bounds of what a vCPU can have: KVM's own, and for XSAVE what no processor comes near.
inline constexpr std::size_t kMaxSavedCpuid = 256;
inline constexpr std::size_t kMaxSavedMsrs = 1024;
inline constexpr std::size_t kSmallestXsave = sizeof(kvm_xsave::region);
inline constexpr std::size_t kLargestXsave = std::size_t{64} << 10;

// The registers that are worth saving, as far as the list that KVM gives goes: in the order in which they are
// to be set. Left out is what guests of this monitor have no use for (cpuid.h): nested virtualization,
// Hyper-V's, the counters where there are none; added are the memory types, which KVM does not list. A pure
// function.
std::vector<std::uint32_t> msrs_to_save(std::span<const std::uint32_t> listed);
// The same, of KVM_GET_MSR_INDEX_LIST (api.rst 4.3).
Result<std::vector<std::uint32_t>> msrs_to_save(const Kvm& kvm);

// What of a KVM a saved vCPU depends on. Asked for once a machine.
struct VcpuSaving {
  std::vector<std::uint32_t> msrs;  // msrs_to_save()
  std::size_t xsave_size = 0;       // Kvm::xsave_size()
};
Result<VcpuSaving> vcpu_saving(const Kvm& kvm);

// The vCPU is out of the guest with no access open (Vcpu::complete_pending_access()). `cpuid` is what it was
// given: what KVM_GET_CPUID2 answers is not always that, as a KVM without hardware behind it shows. Registers
// that this KVM lists and yet refuses to read are left out. A one-shot timer (TSC deadline) that has run out,
// whose interrupt KVM may hold where nobody can read it, is saved as one that runs out now: rather one
// interrupt too many than one too few.
Result<VcpuState> save_vcpu(const Vcpu& vcpu, const VcpuSaving& saving,
                            std::span<const kvm_cpuid_entry2> cpuid);
// For a vCPU that is fresh from Vm::create_vcpu(): what may lie in it for as long as one likes before the
// guest goes on; and then, once, the rest: its clocks and timers, which run from then on, and what is
// pending. `xsave_size`: Kvm::xsave_size(), or more. Errors, after which it is to be given up: what KVM
// reports; kUnsupported naming the register that this KVM refuses, or for a clock rate that this host's vCPUs
// cannot have.
Result<void> restore_timeless(const Vcpu& vcpu, const VcpuState& state, std::size_t xsave_size);
Result<void> restore_timed(const Vcpu& vcpu, const VcpuState& state);

Result<PlatformState> save_platform(const Vm& vm);
// kInvalidArgument where the state's parts are not those they stand for.
Result<void> restore_platform(const Vm& vm, const PlatformState& state);

// What KVM can give guests on this host (supported_cpuid()).
using SupportedProcessor = std::vector<kvm_cpuid_entry2>;

// Whether a guest that was given `guest`, its CPUID, finds here all that it may be using: `supported` is what
// KVM can give on this host. kUnsupported that names the first thing missing: another vendor's processor
// ("saved on an AMD processor, this one is Intel's"), features by leaf and bit. Features of the host that the
// guest was not given do not matter. A pure function.
Result<void> check_cpuid_fits(std::span<const kvm_cpuid_entry2> guest,
                              std::span<const kvm_cpuid_entry2> supported);

}  // namespace mayfly::x86_64
