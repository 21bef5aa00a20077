#include "kvm/x86_64/apply_template.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>
#include <utility>

#include "base/text.h"
#include "kvm/x86_64/cpuid.h"

namespace mayfly::x86_64 {
namespace {

constexpr std::uint32_t kAll = ~std::uint32_t{0};
constexpr std::uint32_t kAddressSizes = 0x80000008;

// Bits that the machine decides: what cpuid.cc sets, and what it clears of features that need more than a bit
// to be there (SDM volume 2, CPUID; APM volume 3, E.3, E.4).
struct OwnBits {
  std::uint32_t leaf;
  CpuidRegister reg;
  std::uint32_t bits;
};
constexpr auto kEax = CpuidRegister::kEax;
constexpr auto kEbx = CpuidRegister::kEbx;
constexpr auto kEcx = CpuidRegister::kEcx;
constexpr auto kEdx = CpuidRegister::kEdx;
constexpr std::array kOwnBits = {
    OwnBits{0, kEbx, kAll},  // vendor
    OwnBits{0, kEcx, kAll},
    OwnBits{0, kEdx, kAll},
    OwnBits{1, kEbx, 0xffffff00},  // APIC id, count of ids, CLFLUSH line
    // DTES64, DS_CPL, PDCM; TSC deadline; hypervisor.
    OwnBits{1, kEcx, 1U << 2 | 1U << 4 | 1U << 15 | 1U << 24 | 1U << 31},
    OwnBits{1, kEdx, 1U << 9 | 1U << 21 | 1U << 28},  // local APIC; DS; HTT
    OwnBits{4, kEax, 0xffffc000},                     // who shares a cache
    OwnBits{6, kEax, kAll & ~(1U << 2)},              // power and thermal management, but for ARAT
    OwnBits{6, kEbx, kAll},
    OwnBits{6, kEcx, kAll},
    OwnBits{6, kEdx, kAll},
    OwnBits{7, kEcx, 1U << 5},   // WAITPKG
    OwnBits{7, kEdx, 1U << 19},  // branch records
    OwnBits{0x80000001, kEcx, 1U << 1 | 1U << 10 | 1U << 22 | 1U << 23 | 1U << 24 | 1U << 27 | 1U << 28},
    OwnBits{kAddressSizes, kEcx, 0xf0ff},  // count of threads, width of an id
    OwnBits{0x8000001d, kEax, 0x03ffc000},
};

// Whole leaves that are the machine's: extended topology, AMD's unit ids.
bool is_own_leaf(std::uint32_t leaf) {
  return leaf == 0xb || leaf == 0x1f || leaf == 0x8000001e || leaf == 0x80000026 || is_withheld_leaf(leaf);
}

// Whether a leaf that KVM does not list is what the template makes of it: one of AMX, or of another feature
// that guests do not get, with no bit set. KVM itself lists the state of AMX (leaf 0xd, 17 and 18) only for
// processes that asked for it.
bool is_absent_as_wished(const CpuidChange& change) {
  const bool is_amx_state = change.leaf == 0xd && (change.subleaf == 17 || change.subleaf == 18);
  return (is_amx_state || is_withheld_leaf(change.leaf)) &&
         std::all_of(change.registers.begin(), change.registers.end(),
                     [](const CpuidRegisterChange& entry) { return entry.bits.value == 0; });
}

std::uint32_t own_bits(std::uint32_t leaf, CpuidRegister reg) {
  if (is_own_leaf(leaf)) {
    return kAll;
  }
  const auto found = std::find_if(kOwnBits.begin(), kOwnBits.end(),
                                  [=](const OwnBits& own) { return own.leaf == leaf && own.reg == reg; });
  return found != kOwnBits.end() ? found->bits : 0;
}

template <typename Entry>
Entry* find(std::span<Entry> entries, const CpuidChange& change) {
  const auto found = std::find_if(entries.begin(), entries.end(), [&change](const kvm_cpuid_entry2& entry) {
    return entry.function == change.leaf && entry.index == change.subleaf;
  });
  return found != entries.end() ? &*found : nullptr;
}

std::uint32_t& word_of(kvm_cpuid_entry2& entry, CpuidRegister reg) {
  switch (reg) {
    case CpuidRegister::kEax:
      return entry.eax;
    case CpuidRegister::kEbx:
      return entry.ebx;
    case CpuidRegister::kEcx:
      return entry.ecx;
    case CpuidRegister::kEdx:
      break;
  }
  return entry.edx;
}

Result<void> check_address_bits(std::uint32_t before, std::uint32_t after, unsigned least,
                                const std::string& name) {
  const std::uint32_t most = before & 0xff;
  const std::uint32_t width = after & 0xff;
  if (width != most && (width < least || width > most)) {
    return fail(ErrorCode::kInvalidArgument, name + " eax: asks for " + std::to_string(width) +
                                                 " bits of physical address: must be at least " +
                                                 std::to_string(least) +
                                                 ", for the guest's memory, and at most " +
                                                 std::to_string(most) + ", which this host's processor has");
  }
  return {};
}

}  // namespace

Result<TemplatedCpuid> apply_cpuid_changes(std::span<const kvm_cpuid_entry2> guest,
                                           std::span<const kvm_cpuid_entry2> supported,
                                           std::span<const CpuidChange> changes,
                                           unsigned least_address_bits) {
  TemplatedCpuid result{{guest.begin(), guest.end()}, {}};
  for (const CpuidChange& change : changes) {
    const std::string name = "cpuid_modifiers: leaf " + hex(change.leaf) + ", subleaf " + hex(change.subleaf);
    kvm_cpuid_entry2* entry = find(std::span(result.entries), change);
    if (entry == nullptr) {
      const kvm_cpuid_entry2* listed = find(supported, change);
      if (listed == nullptr && is_absent_as_wished(change)) {
        continue;
      }
      if (listed == nullptr) {
        return fail(ErrorCode::kUnsupported, name + ": this host's KVM does not list it");
      }
      // It reads as zeros.
      kvm_cpuid_entry2 blank{};
      blank.function = change.leaf;
      blank.index = change.subleaf;
      blank.flags = listed->flags;
      entry = &result.entries.emplace_back(blank);
    }
    if (change.flags != entry->flags) {
      result.warnings.push_back(name + ": flags " + std::to_string(change.flags) + ": stay " +
                                std::to_string(entry->flags));
    }
    for (const CpuidRegisterChange& wish : change.registers) {
      std::uint32_t& word = word_of(*entry, wish.reg);
      const std::uint32_t own = own_bits(change.leaf, wish.reg);
      const std::uint32_t wanted = wish.bits.apply(word);
      const std::uint32_t kept = (wanted ^ word) & own;
      if (kept != 0) {
        result.warnings.push_back(name + " " + std::string(name_of(wish.reg)) + ": bits " + hex(kept) +
                                  " are the machine's to decide and stay as they are");
      }
      const std::uint32_t after = wanted ^ kept;
      if (change.leaf == kAddressSizes && wish.reg == CpuidRegister::kEax) {
        MAYFLY_TRY(check_address_bits(word, after, least_address_bits, name));
      }
      word = after;
    }
  }
  drop_blank_entries(result.entries);
  return result;
}

Result<void> apply_msr_changes(std::span<const MsrChange> changes, const MsrGetter& get,
                               const MsrSetter& set) {
  std::vector<MsrChange> wanted;
  std::copy_if(changes.begin(), changes.end(), std::back_inserter(wanted),
               [](const MsrChange& change) { return !is_boot_msr(change.index); });
  if (wanted.empty()) {
    return {};
  }
  std::vector<std::uint32_t> indices(wanted.size());
  std::transform(wanted.begin(), wanted.end(), indices.begin(),
                 [](const MsrChange& change) { return change.index; });
  MAYFLY_TRY_ASSIGN(std::vector<kvm_msr_entry> values, get(indices));
  if (values.size() < wanted.size()) {
    return fail(ErrorCode::kUnsupported, "msr_modifiers: addr " + hex(wanted[values.size()].index) +
                                             ": this host's KVM has no such register");
  }
  for (std::size_t place = 0; place < wanted.size(); ++place) {
    values[place].data = wanted[place].bits.apply(values[place].data);
  }
  MAYFLY_TRY_ASSIGN(const std::size_t count, set(values));
  if (count < values.size()) {
    return fail(ErrorCode::kInvalidArgument, "msr_modifiers: addr " + hex(values[count].index) +
                                                 ": this host's KVM refuses " + hex(values[count].data));
  }
  return {};
}

}  // namespace mayfly::x86_64
