#include "snapshot/x86_64/processor.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kvm/x86_64/cpuid.h"

namespace mayfly::snapshot_detail {
namespace {

constexpr std::uint8_t kIntel = 1;
constexpr std::uint8_t kAmd = 2;
constexpr std::uint8_t kHygon = 3;

}  // namespace

std::uint8_t vendor_code(const x86_64::VcpuState& vcpu) {
  switch (x86_64::vendor_of(vcpu.cpuid)) {
    case x86_64::CpuVendor::kIntel:
      return kIntel;
    case x86_64::CpuVendor::kAmd:
      return kAmd;
    case x86_64::CpuVendor::kHygon:
      return kHygon;
    case x86_64::CpuVendor::kOther:
      break;
  }
  return 0;
}

const char* vendor_name(std::uint8_t code) {
  switch (code) {
    case kIntel:
      return "Intel";
    case kAmd:
      return "AMD";
    case kHygon:
      return "Hygon";
    default:
      return "of another vendor";
  }
}

std::string brand_of(const x86_64::VcpuState& vcpu) {
  // Leaves 0x80000002 to 4, 16 characters each (SDM volume 2, CPUID).
  std::string brand;
  for (std::uint32_t leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
    const auto found = std::find_if(vcpu.cpuid.begin(), vcpu.cpuid.end(),
                                    [leaf](const kvm_cpuid_entry2& entry) { return entry.function == leaf; });
    if (found == vcpu.cpuid.end()) {
      break;
    }
    const std::array<std::uint32_t, 4> words = {found->eax, found->ebx, found->ecx, found->edx};
    std::array<char, sizeof(words)> text{};
    std::memcpy(text.data(), words.data(), text.size());
    brand.append(text.begin(), std::find(text.begin(), text.end(), '\0'));
  }
  const std::size_t first = brand.find_first_not_of(' ');
  return first == std::string::npos ? "" : brand.substr(first, brand.find_last_not_of(' ') - first + 1);
}

std::optional<std::string> what_is_wrong(const x86_64::VcpuState& vcpu) {
  if (vcpu.cpuid.empty() || vcpu.cpuid.size() > x86_64::kMaxSavedCpuid) {
    return std::to_string(vcpu.cpuid.size()) + " CPUID entries";
  }
  if (vcpu.msrs.size() > x86_64::kMaxSavedMsrs) {
    return std::to_string(vcpu.msrs.size()) + " model-specific registers";
  }
  if (vcpu.xsave.size() < x86_64::kSmallestXsave || vcpu.xsave.size() > x86_64::kLargestXsave) {
    return std::to_string(vcpu.xsave.size()) + " bytes of vector registers";
  }
  if (vcpu.extended_control.nr_xcrs > KVM_MAX_XCRS) {
    return std::to_string(vcpu.extended_control.nr_xcrs) + " extended control registers";
  }
  return std::nullopt;
}

}  // namespace mayfly::snapshot_detail
