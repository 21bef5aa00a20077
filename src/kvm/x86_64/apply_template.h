// A CPU template onto the processor that guests would have without it: pure functions, but for the two that
// stand for a vCPU's registers.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "kvm/x86_64/cpu_template.h"
#include "kvm/x86_64/msrs.h"

namespace mayfly::x86_64 {

struct TemplatedCpuid {
  std::vector<kvm_cpuid_entry2> entries;
  // What was asked for and not done, because the machine decides it; for the log. Sentences without a final
  // stop.
  std::vector<std::string> warnings;
};

// `guest`, from make_guest_cpuid(), with `changes`; `supported` is what that was made from. For a template
// that validate() accepts. What the machine decides stays, with a warning where the template says otherwise:
// - the vendor, and whether there is a hypervisor, a TSC deadline timer and performance counters;
// - the topology: how many vCPUs share what, and their ids, which set_vcpu_id() fills;
// - the flags of a leaf, which say how KVM looks it up;
// - leaves of what guests do not get (cpuid.h).
// Errors: kUnsupported for a leaf that this KVM does not list, unless it is of what guests do not get and no
// bit of it is set; kInvalidArgument for a width of physical
// addresses (leaf 0x80000008, EAX 7:0) below `least_address_bits`, which guest memory needs, or above the
// host's.
Result<TemplatedCpuid> apply_cpuid_changes(std::span<const kvm_cpuid_entry2> guest,
                                           std::span<const kvm_cpuid_entry2> supported,
                                           std::span<const CpuidChange> changes, unsigned least_address_bits);

// KVM_GET_MSRS for the vCPU at hand: the values of `indices`, up to the first that it does not have.
using MsrGetter = std::function<Result<std::vector<kvm_msr_entry>>(std::span<const std::uint32_t> indices)>;

// Reads the registers of `changes`, changes their bits and writes them back. After the boot MSRs; those of
// them that `changes` names stay as they are (is_boot_msr()). Errors: kUnsupported for a register that this
// KVM does not have, before any is written; kInvalidArgument for a value that it refuses.
Result<void> apply_msr_changes(std::span<const MsrChange> changes, const MsrGetter& get,
                               const MsrSetter& set);

}  // namespace mayfly::x86_64
