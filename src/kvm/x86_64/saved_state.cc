#include "kvm/x86_64/saved_state.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "base/text.h"
#include "kvm/ioctl.h"
#include "kvm/x86_64/cpuid.h"
#include "kvm/x86_64/msrs.h"
#include "kvm/x86_64/vcpu_state.h"

namespace mayfly::x86_64 {
namespace {

using kvm_detail::call;
using kvm_detail::command;
using kvm_detail::read_state;

using XsaveArea = std::array<std::byte, kSmallestXsave>;

constexpr unsigned long kGetMsrIndexList = _IOWR(KVMIO, 0x02, std::uint32_t);
// kvm_xsave has an array without a size at its end, as well.
constexpr unsigned long kGetXsave = _IOR(KVMIO, 0xa4, XsaveArea);
constexpr unsigned long kSetXsave = _IOW(KVMIO, 0xa5, XsaveArea);
constexpr unsigned long kGetXsave2 = _IOR(KVMIO, 0xcf, XsaveArea);
static_assert(kSmallestXsave == 4096);

enum MsrIndex : std::uint32_t {
  kTsc = 0x10,
  kTscDeadline = 0x6e0,
  kMtrrDefType = 0x2ff,
};

// Memory types that KVM takes and does not list (SDM volume 3, 11.11.2): fixed ranges, eight variable ones.
constexpr std::array<std::uint32_t, 11> kFixedMtrrs = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a,
                                                       0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
constexpr std::uint32_t kFirstVariableMtrr = 0x200;
constexpr std::uint32_t kLastVariableMtrr = 0x20f;

struct MsrRange {
  std::uint32_t first;
  std::uint32_t last;
};
// What no guest has: see msrs_to_save().
constexpr std::array kLeftOut = {
    MsrRange{0x0c1, 0x0c8},            // counters (SDM volume 4, 2.1)
    MsrRange{0x186, 0x18d},            // what they count
    MsrRange{0x309, 0x30c},            // fixed counters
    MsrRange{0x345, 0x345},            // IA32_PERF_CAPABILITIES
    MsrRange{0x38d, 0x390},            // their control
    MsrRange{0x3f1, 0x3f2},            // PEBS
    MsrRange{0x480, 0x493},            // what VMX can do
    MsrRange{0x600, 0x600},            // IA32_DS_AREA
    MsrRange{0x40000000, 0x400001ff},  // Hyper-V's
    MsrRange{0xc0000300, 0xc0000303},  // AMD's global counter control
    MsrRange{0xc0010000, 0xc0010007},  // AMD's first four counters
    MsrRange{0xc0010114, 0xc0010117},  // SVM
    MsrRange{0xc0010200, 0xc001020b},  // AMD's six counters
};

bool is_left_out(std::uint32_t index) {
  return std::any_of(kLeftOut.begin(), kLeftOut.end(),
                     [index](const MsrRange& range) { return range.first <= index && index <= range.last; });
}

// Those of `indices` that KVM lets be read.
Result<std::vector<kvm_msr_entry>> read_msrs(const Vcpu& vcpu, std::span<const std::uint32_t> indices) {
  std::vector<kvm_msr_entry> all;
  while (!indices.empty()) {
    MAYFLY_TRY_ASSIGN(const auto some, get_msrs(vcpu, indices));
    all.insert(all.end(), some.begin(), some.end());
    // Past the one that was refused, where one was.
    indices = indices.subspan(std::min(indices.size(), some.size() + 1));
  }
  return all;
}

kvm_msr_entry* find_msr(std::vector<kvm_msr_entry>& msrs, std::uint32_t index) {
  const auto found = std::find_if(msrs.begin(), msrs.end(),
                                  [index](const kvm_msr_entry& entry) { return entry.index == index; });
  return found != msrs.end() ? &*found : nullptr;
}

// SDM volume 3, 11.5.4: the timer's mode is bits 17 and 18 of its vector's register; 2 is TSC deadline.
bool has_deadline_timer(const kvm_lapic_state& state) {
  constexpr std::size_t kLvtTimer = 0x320;
  std::uint32_t entry = 0;
  std::memcpy(&entry, &state.regs[kLvtTimer], sizeof entry);
  return ((entry >> 17) & 3U) == 2;
}

void keep_expired_deadline(VcpuState& state) {
  kvm_msr_entry* deadline = find_msr(state.msrs, kTscDeadline);
  const kvm_msr_entry* now = find_msr(state.msrs, kTsc);
  if (deadline != nullptr && now != nullptr && deadline->data == 0 && has_deadline_timer(state.local_apic)) {
    deadline->data = now->data;
  }
}

Result<std::vector<std::byte>> get_xsave(const Vcpu& vcpu, std::size_t size) {
  std::vector<std::byte> state(std::max(size, kSmallestXsave));
  MAYFLY_TRY(call(vcpu.descriptor(), state.size() > kSmallestXsave ? kGetXsave2 : kGetXsave, state.data(),
                  "read vector registers (KVM_GET_XSAVE)"));
  return state;
}

// KVM reads as many bytes as this host's vCPUs have: what is saved must not be shorter. It is padded with
// zeros, which stand for state that is as after a reset.
Result<void> set_xsave(const Vcpu& vcpu, std::span<const std::byte> state, std::size_t size) {
  std::vector<std::byte> padded;
  if (state.size() < size) {
    padded.resize(size);
    std::ranges::copy(state, padded.begin());
    state = padded;
  }
  return command(vcpu.descriptor(), kSetXsave, state.data(), "set vector registers (KVM_SET_XSAVE)");
}

Result<void> restore_tsc_rate(const Vcpu& vcpu, std::uint32_t khz) {
  MAYFLY_TRY_ASSIGN(const std::uint32_t own, tsc_khz(vcpu));
  // Two boots of one host measure rates that differ a little: so much KVM, too, takes for the same (its
  // parameter tsc_tolerance_ppm).
  const std::uint64_t difference = own > khz ? own - khz : khz - own;
  if (khz == 0 || difference * 1'000'000 <= std::uint64_t{250} * own) {
    return {};
  }
  // KVM_SET_TSC_KHZ (api.rst 4.55).
  const auto set = command(vcpu.descriptor(), KVM_SET_TSC_KHZ, static_cast<unsigned long>(khz), "");
  if (!set) {
    return fail(ErrorCode::kUnsupported, "the guest's time-stamp counter runs at " + std::to_string(khz) +
                                             " kHz, this host's at " + std::to_string(own) +
                                             ", and this KVM cannot scale it (KVM_SET_TSC_KHZ)");
  }
  return {};
}

Result<void> restore_msrs(const Vcpu& vcpu, std::span<const kvm_msr_entry> msrs) {
  // KVM takes 255 at once.
  constexpr std::size_t kAtOnce = 255;
  while (!msrs.empty()) {
    const auto some = msrs.first(std::min(kAtOnce, msrs.size()));
    MAYFLY_TRY_ASSIGN(const std::size_t count, set_msrs(vcpu, some));
    if (count < some.size()) {
      return fail(ErrorCode::kUnsupported,
                  "this KVM refuses the guest's value of MSR " + msr_name(some[count].index));
    }
    msrs = msrs.subspan(some.size());
  }
  return {};
}

Result<kvm_irqchip> get_chip(const Vm& vm, std::uint32_t id) {
  kvm_irqchip chip{};
  chip.chip_id = id;
  MAYFLY_TRY(
      command(vm.descriptor(), KVM_GET_IRQCHIP, &chip, "read an interrupt controller (KVM_GET_IRQCHIP)"));
  return chip;
}

Result<void> set_chip(const Vm& vm, const kvm_irqchip& chip, std::uint32_t id) {
  if (chip.chip_id != id) {
    return fail(ErrorCode::kInvalidArgument, "interrupt controller " + std::to_string(id) +
                                                 ": the state is of " + std::to_string(chip.chip_id));
  }
  return command(vm.descriptor(), KVM_SET_IRQCHIP, &chip, "set an interrupt controller (KVM_SET_IRQCHIP)");
}

// Where CPUID says what a guest may use.
struct FeatureWord {
  std::uint32_t leaf;
  std::uint32_t subleaf;
  std::uint32_t kvm_cpuid_entry2::*reg;
  const char* name;
  std::uint32_t says_nothing;  // bits that are no features of the host's
};
constexpr std::array kFeatureWords = {
    // OSXSAVE is the guest's own doing; the other two KVM does not list, but has (api.rst 4.46).
    FeatureWord{1, 0, &kvm_cpuid_entry2::ecx, "ECX", 1U << 31 | 1U << 27 | 1U << 24},
    FeatureWord{1, 0, &kvm_cpuid_entry2::edx, "EDX", 1U << 28},  // HTT: topology
    FeatureWord{7, 0, &kvm_cpuid_entry2::ebx, "EBX", 0},
    FeatureWord{7, 0, &kvm_cpuid_entry2::ecx, "ECX", 1U << 4},  // OSPKE: the guest's doing
    FeatureWord{7, 0, &kvm_cpuid_entry2::edx, "EDX", 0},
    FeatureWord{7, 1, &kvm_cpuid_entry2::eax, "EAX", 0},
    FeatureWord{7, 2, &kvm_cpuid_entry2::edx, "EDX", 0},
    FeatureWord{0xd, 0, &kvm_cpuid_entry2::eax, "EAX", 0},
    FeatureWord{0xd, 0, &kvm_cpuid_entry2::edx, "EDX", 0},
    FeatureWord{0xd, 1, &kvm_cpuid_entry2::eax, "EAX", 0},
    FeatureWord{0x40000001, 0, &kvm_cpuid_entry2::eax, "EAX", 0},
    FeatureWord{0x80000001, 0, &kvm_cpuid_entry2::ecx, "ECX", 1U << 1},  // CmpLegacy: topology
    FeatureWord{0x80000001, 0, &kvm_cpuid_entry2::edx, "EDX", 0},
    FeatureWord{0x80000007, 0, &kvm_cpuid_entry2::edx, "EDX", 0},
    FeatureWord{0x80000008, 0, &kvm_cpuid_entry2::ebx, "EBX", 0},
    FeatureWord{0x80000021, 0, &kvm_cpuid_entry2::eax, "EAX", 0},
};

std::uint32_t value_of(std::span<const kvm_cpuid_entry2> entries, const FeatureWord& word) {
  const auto found = std::find_if(entries.begin(), entries.end(), [&word](const kvm_cpuid_entry2& entry) {
    // The index of a leaf without subleaves says nothing (api.rst 4.20).
    return entry.function == word.leaf &&
           ((entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) == 0 || entry.index == word.subleaf);
  });
  return found != entries.end() ? (*found).*word.reg : 0;
}

const char* name_of(CpuVendor vendor) {
  switch (vendor) {
    case CpuVendor::kIntel:
      return "Intel";
    case CpuVendor::kAmd:
      return "AMD";
    case CpuVendor::kHygon:
      return "Hygon";
    case CpuVendor::kOther:
      break;
  }
  return "unknown";
}

}  // namespace

std::vector<std::uint32_t> msrs_to_save(std::span<const std::uint32_t> listed) {
  std::vector<std::uint32_t> all(listed.begin(), listed.end());
  all.push_back(kMtrrDefType);
  all.insert(all.end(), kFixedMtrrs.begin(), kFixedMtrrs.end());
  for (std::uint32_t index = kFirstVariableMtrr; index <= kLastVariableMtrr; ++index) {
    all.push_back(index);
  }
  for (const kvm_msr_entry& entry : boot_msrs()) {
    all.push_back(entry.index);
  }
  std::erase_if(all, is_left_out);
  // The time, then all else, and the deadline last, which counts from the time.
  const auto rank = [](std::uint32_t index) { return index == kTsc ? 0 : index == kTscDeadline ? 2 : 1; };
  std::sort(all.begin(), all.end(), [rank](std::uint32_t one, std::uint32_t other) {
    return std::pair(rank(one), one) < std::pair(rank(other), other);
  });
  all.erase(std::unique(all.begin(), all.end()), all.end());
  all.resize(std::min(all.size(), kMaxSavedMsrs));
  return all;
}

Result<std::vector<std::uint32_t>> msrs_to_save(const Kvm& kvm) {
  // A count, and the indices right behind it: no CountedArray.
  std::vector<std::uint32_t> list(1 + kMaxSavedMsrs);
  list.front() = kMaxSavedMsrs;
  MAYFLY_TRY(call(kvm.descriptor(), kGetMsrIndexList, list.data(),
                  "ask for the list of model-specific registers (KVM_GET_MSR_INDEX_LIST)"));
  return msrs_to_save(std::span(list).subspan(1, std::min<std::size_t>(list.front(), kMaxSavedMsrs)));
}

Result<VcpuSaving> vcpu_saving(const Kvm& kvm) {
  MAYFLY_TRY_ASSIGN(auto msrs, msrs_to_save(kvm));
  return VcpuSaving{.msrs = std::move(msrs), .xsave_size = kvm.xsave_size()};
}

Result<VcpuState> save_vcpu(const Vcpu& vcpu, const VcpuSaving& saving,
                            std::span<const kvm_cpuid_entry2> cpuid) {
  const UniqueFd& fd = vcpu.descriptor();
  VcpuState state;
  state.id = vcpu.id();
  // First: KVM carries out a start-up interrupt that is pending, which changes registers.
  MAYFLY_TRY_ASSIGN(state.mp_state, vcpu.mp_state());
  state.cpuid.assign(cpuid.begin(), cpuid.end());
  MAYFLY_TRY_ASSIGN(state.tsc_khz, tsc_khz(vcpu));
  MAYFLY_TRY_ASSIGN(state.registers, get_regs(vcpu));
  MAYFLY_TRY_ASSIGN(state.special, get_sregs(vcpu));
  MAYFLY_TRY_ASSIGN(state.xsave, get_xsave(vcpu, saving.xsave_size));
  MAYFLY_TRY_ASSIGN(state.extended_control,
                    read_state<kvm_xcrs>(fd, KVM_GET_XCRS, "read XCR0 (KVM_GET_XCRS)"));
  MAYFLY_TRY_ASSIGN(state.debug, read_state<kvm_debugregs>(fd, KVM_GET_DEBUGREGS,
                                                           "read debug registers (KVM_GET_DEBUGREGS)"));
  MAYFLY_TRY_ASSIGN(state.local_apic, get_lapic(vcpu));
  MAYFLY_TRY_ASSIGN(state.msrs, read_msrs(vcpu, saving.msrs));
  MAYFLY_TRY_ASSIGN(state.events, read_state<kvm_vcpu_events>(fd, KVM_GET_VCPU_EVENTS,
                                                              "read pending events (KVM_GET_VCPU_EVENTS)"));
  keep_expired_deadline(state);
  return state;
}

Result<void> restore_timeless(const Vcpu& vcpu, const VcpuState& state, std::size_t xsave_size) {
  const UniqueFd& fd = vcpu.descriptor();
  // The CPUID first: it decides what the rest may hold. The clock's rate before any value of the clock.
  MAYFLY_TRY(set_cpuid(vcpu, state.cpuid));
  MAYFLY_TRY(restore_tsc_rate(vcpu, state.tsc_khz));
  MAYFLY_TRY(set_regs(vcpu, state.registers));
  // Before the local APIC: it says where that is and in which mode.
  MAYFLY_TRY(set_sregs(vcpu, state.special));
  MAYFLY_TRY(set_xsave(vcpu, state.xsave, std::max(xsave_size, kSmallestXsave)));
  MAYFLY_TRY(command(fd, KVM_SET_XCRS, &state.extended_control, "set XCR0 (KVM_SET_XCRS)"));
  return command(fd, KVM_SET_DEBUGREGS, &state.debug, "set debug registers (KVM_SET_DEBUGREGS)");
}

Result<void> restore_timed(const Vcpu& vcpu, const VcpuState& state) {
  const UniqueFd& fd = vcpu.descriptor();
  MAYFLY_TRY(set_lapic(vcpu, state.local_apic));
  // After the local APIC, whose timer's mode decides what a deadline means.
  MAYFLY_TRY(restore_msrs(vcpu, state.msrs));
  MAYFLY_TRY(command(fd, KVM_SET_VCPU_EVENTS, &state.events, "set pending events (KVM_SET_VCPU_EVENTS)"));
  // Last: special registers that look like a reset's make KVM start the vCPU.
  return vcpu.set_mp_state(state.mp_state);
}

Result<PlatformState> save_platform(const Vm& vm) {
  PlatformState state;
  MAYFLY_TRY_ASSIGN(state.first_pic, get_chip(vm, KVM_IRQCHIP_PIC_MASTER));
  MAYFLY_TRY_ASSIGN(state.second_pic, get_chip(vm, KVM_IRQCHIP_PIC_SLAVE));
  MAYFLY_TRY_ASSIGN(state.io_apic, get_chip(vm, KVM_IRQCHIP_IOAPIC));
  MAYFLY_TRY_ASSIGN(state.timer, read_state<kvm_pit_state2>(vm.descriptor(), KVM_GET_PIT2,
                                                            "read the timer (KVM_GET_PIT2)"));
  return state;
}

Result<void> restore_platform(const Vm& vm, const PlatformState& state) {
  MAYFLY_TRY(command(vm.descriptor(), KVM_SET_PIT2, &state.timer, "set the timer (KVM_SET_PIT2)"));
  MAYFLY_TRY(set_chip(vm, state.first_pic, KVM_IRQCHIP_PIC_MASTER));
  MAYFLY_TRY(set_chip(vm, state.second_pic, KVM_IRQCHIP_PIC_SLAVE));
  return set_chip(vm, state.io_apic, KVM_IRQCHIP_IOAPIC);
}

Result<void> check_cpuid_fits(std::span<const kvm_cpuid_entry2> guest,
                              std::span<const kvm_cpuid_entry2> supported) {
  const CpuVendor saved_on = vendor_of(guest);
  const CpuVendor here = vendor_of(supported);
  if (saved_on != here) {
    return fail(ErrorCode::kUnsupported, std::string("saved on a processor of vendor ") + name_of(saved_on) +
                                             ", this host's is of vendor " + name_of(here));
  }
  for (const FeatureWord& word : kFeatureWords) {
    const std::uint32_t missing = value_of(guest, word) & ~value_of(supported, word) & ~word.says_nothing;
    if (missing != 0) {
      return fail(ErrorCode::kUnsupported, "this host lacks what the guest was given: CPUID leaf " +
                                               hex(word.leaf) + "." + std::to_string(word.subleaf) + ", " +
                                               word.name + ", bits " + hex(missing));
    }
  }
  return {};
}

}  // namespace mayfly::x86_64
