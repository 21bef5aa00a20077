// The model-specific registers that a vCPU starts with.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace mayfly::x86_64 {

// What firmware would have left behind. After the CPUID has been set.
std::span<const kvm_msr_entry> boot_msrs();

// Whether boot_msrs() has it.
bool is_boot_msr(std::uint32_t index);

// KVM_SET_MSRS for the vCPU at hand: sets `entries` in order and answers how many were set before the first
// that was refused.
using MsrSetter = std::function<Result<std::size_t>(std::span<const kvm_msr_entry> entries)>;

// Sets `entries`, passing over those that this KVM refuses; answers their indices. One call where none is
// refused, one more for each that is: cheaper than asking for KVM_GET_MSR_INDEX_LIST first, which moreover
// leaves registers out that KVM does take (IA32_MTRR_DEF_TYPE). Errors: only what `set` itself reports.
Result<std::vector<std::uint32_t>> set_msrs_that_exist(std::span<const kvm_msr_entry> entries,
                                                       const MsrSetter& set);

// "IA32_TSC (0x10)", or the number alone for one that is not among boot_msrs().
std::string msr_name(std::uint32_t index);

}  // namespace mayfly::x86_64
