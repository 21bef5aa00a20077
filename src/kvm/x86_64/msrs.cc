#include "kvm/x86_64/msrs.h"

#include <algorithm>
#include <cstdio>

namespace mayfly::x86_64 {
namespace {

// Numbers and bits: SDM volume 4, 2.1; for STAR and its kin also APM volume 2, 6.1.1.
enum MsrIndex : std::uint32_t {
  kTsc = 0x10,
  kSysenterCs = 0x174,
  kSysenterEsp = 0x175,
  kSysenterEip = 0x176,
  kMiscEnable = 0x1a0,
  kMtrrDefType = 0x2ff,
  kStar = 0xc0000081,
  kLstar = 0xc0000082,
  kCstar = 0xc0000083,
  kSyscallMask = 0xc0000084,
  kKernelGsBase = 0xc0000102,
};

constexpr std::uint64_t kMiscEnableFastStrings = 1U << 0;
constexpr std::uint64_t kMtrrEnable = 1U << 11;
constexpr std::uint64_t kMtrrWriteBack = 6;

constexpr std::array<kvm_msr_entry, 11> kBootMsrs = {{
    // System calls go nowhere until the guest says where.
    {kSysenterCs, 0, 0},
    {kSysenterEsp, 0, 0},
    {kSysenterEip, 0, 0},
    {kStar, 0, 0},
    {kLstar, 0, 0},
    {kCstar, 0, 0},
    {kSyscallMask, 0, 0},
    {kKernelGsBase, 0, 0},
    // KVM takes a host's write of 0 as "in step with the other vCPUs".
    {kTsc, 0, 0},
    {kMiscEnable, 0, kMiscEnableFastStrings},
    // All memory is cached unless the guest's page tables say otherwise: no variable ranges, as a guest would
    // otherwise find RAM uncached.
    {kMtrrDefType, 0, kMtrrEnable | kMtrrWriteBack},
}};

struct Name {
  std::uint32_t index;
  const char* text;
};
constexpr std::array<Name, kBootMsrs.size()> kNames = {{
    {kSysenterCs, "IA32_SYSENTER_CS"},
    {kSysenterEsp, "IA32_SYSENTER_ESP"},
    {kSysenterEip, "IA32_SYSENTER_EIP"},
    {kStar, "STAR"},
    {kLstar, "LSTAR"},
    {kCstar, "CSTAR"},
    {kSyscallMask, "SYSCALL_MASK"},
    {kKernelGsBase, "KERNEL_GS_BASE"},
    {kTsc, "IA32_TSC"},
    {kMiscEnable, "IA32_MISC_ENABLE"},
    {kMtrrDefType, "IA32_MTRR_DEF_TYPE"},
}};

}  // namespace

std::span<const kvm_msr_entry> boot_msrs() {
  return kBootMsrs;
}

bool is_boot_msr(std::uint32_t index) {
  return std::any_of(kBootMsrs.begin(), kBootMsrs.end(),
                     [index](const kvm_msr_entry& entry) { return entry.index == index; });
}

Result<std::vector<std::uint32_t>> set_msrs_that_exist(std::span<const kvm_msr_entry> entries,
                                                       const MsrSetter& set) {
  std::vector<std::uint32_t> refused;
  while (!entries.empty()) {
    MAYFLY_TRY_ASSIGN(const std::size_t count, set(entries));
    if (count >= entries.size()) {
      break;
    }
    refused.push_back(entries[count].index);
    entries = entries.subspan(count + 1);
  }
  return refused;
}

std::string msr_name(std::uint32_t index) {
  std::array<char, 11> number{};
  const int length = std::snprintf(number.data(), number.size(), "%#x", index);
  std::string text(number.data(), static_cast<std::size_t>(length));
  const auto known =
      std::find_if(kNames.begin(), kNames.end(), [index](const Name& name) { return name.index == index; });
  return known != kNames.end() ? std::string(known->text) + " (" + text + ")" : text;
}

}  // namespace mayfly::x86_64
