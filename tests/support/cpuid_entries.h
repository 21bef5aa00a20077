// Entries of a CPUID table, as KVM_GET_SUPPORTED_CPUID gives them.
#pragma once

#include <linux/kvm.h>

#include <cstdint>

namespace mayfly::testing {

inline kvm_cpuid_entry2 leaf(std::uint32_t function, std::uint32_t eax, std::uint32_t ebx, std::uint32_t ecx,
                             std::uint32_t edx) {
  kvm_cpuid_entry2 entry{};
  entry.function = function;
  entry.eax = eax;
  entry.ebx = ebx;
  entry.ecx = ecx;
  entry.edx = edx;
  return entry;
}

// Of a leaf that has several.
inline kvm_cpuid_entry2 sub(std::uint32_t function, std::uint32_t index, std::uint32_t eax, std::uint32_t ebx,
                            std::uint32_t ecx, std::uint32_t edx) {
  kvm_cpuid_entry2 entry = leaf(function, eax, ebx, ecx, edx);
  entry.index = index;
  entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  return entry;
}

}  // namespace mayfly::testing
