#include "kvm/x86_64/cpu_template.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <utility>

#include "base/text.h"

namespace mayfly::x86_64 {
namespace {

// Features that guests do not get, with the bits that announce them (SDM volume 2, CPUID; APM volume 3, E.3,
// E.4).
struct Withheld {
  std::uint32_t leaf;
  std::uint32_t subleaf;
  CpuidRegister reg;
  std::uint32_t bits;
  std::string_view what;
};
constexpr std::array kWithheld = {
    Withheld{1, 0, CpuidRegister::kEcx, 1U << 5, "nested virtualization (VMX)"},
    Withheld{7, 0, CpuidRegister::kEbx, 1U << 2, "SGX"},
    Withheld{7, 0, CpuidRegister::kEbx, 1U << 25, "processor trace"},
    Withheld{7, 0, CpuidRegister::kEcx, 1U << 30, "SGX"},
    Withheld{7, 0, CpuidRegister::kEdx, (1U << 22) | (1U << 24) | (1U << 25), "AMX"},
    Withheld{7, 1, CpuidRegister::kEax, 1U << 21, "AMX"},
    Withheld{7, 1, CpuidRegister::kEdx, 1U << 8, "AMX"},
    Withheld{0x80000001, 0, CpuidRegister::kEcx, 1U << 2, "nested virtualization (SVM)"},
};

// Registers that the machine and its boot protocol own (SDM volume 4, 2.1; volume 3, 12.11.2 for the memory
// types).
struct OwnMsrs {
  std::uint32_t first;
  std::uint32_t last;
  std::string_view what;
};
constexpr std::array kOwnMsrs = {
    OwnMsrs{0x1b, 0x1b, "where the local APIC is"},
    OwnMsrs{0x200, 0x26f, "memory types"},
    OwnMsrs{0x6e0, 0x6e0, "the local APIC's timer"},
    OwnMsrs{0x800, 0x8ff, "the local APIC"},
    OwnMsrs{0xc0000080, 0xc0000080, "the mode in which the kernel is entered"},
    OwnMsrs{0xc0000100, 0xc0000101, "the segments with which the kernel is entered"},
};

tl::unexpected<Error> refuse(std::string text) {
  return fail(ErrorCode::kInvalidArgument, std::move(text));
}

Result<void> check_count(std::size_t count, const char* field) {
  if (count > CpuTemplate::kMaxChanges) {
    return refuse(std::string(field) + ": there are " + std::to_string(count) + " of them, and at most " +
                  std::to_string(CpuTemplate::kMaxChanges) + " are possible");
  }
  return {};
}

Result<void> check_registers(const CpuidChange& change, const std::string& name) {
  std::set<CpuidRegister> seen;
  for (const CpuidRegisterChange& entry : change.registers) {
    const std::string place = name + " " + std::string(name_of(entry.reg));
    if (!seen.insert(entry.reg).second) {
      return refuse(place + ": is changed twice");
    }
    for (const Withheld& withheld : kWithheld) {
      const std::uint32_t set = entry.bits.value & withheld.bits;
      if (withheld.leaf == change.leaf && withheld.subleaf == change.subleaf && withheld.reg == entry.reg &&
          set != 0) {
        return refuse(place + ": sets bits " + hex(set) + ", but guests do not get " +
                      std::string(withheld.what) + "; write 0 or x there");
      }
    }
  }
  return {};
}

}  // namespace

template <typename Word>
Result<BitChange<Word>> BitChange<Word>::parse(std::string_view text) {
  // Without a prefix, what is meant as hexadecimal ("0x10") could be read as well.
  const bool has_prefix = text.starts_with("0b");
  const std::string_view digits = text.substr(has_prefix ? 2 : 0);
  BitChange change;
  int count = 0;
  for (const char digit : digits) {
    if (digit == '_') {
      continue;
    }
    if (!has_prefix || (digit != '0' && digit != '1' && digit != 'x')) {
      return refuse("must be 0b and then of the characters 0, 1, x and _");
    }
    if (++count > std::numeric_limits<Word>::digits) {
      return refuse("has more than " + std::to_string(std::numeric_limits<Word>::digits) + " bits");
    }
    change.mask = static_cast<Word>(change.mask << 1 | (digit == 'x' ? 0 : 1));
    change.value = static_cast<Word>(change.value << 1 | (digit == '1' ? 1 : 0));
  }
  if (count == 0) {
    return refuse("has no bits");
  }
  return change;
}

template <typename Word>
std::string BitChange<Word>::to_string() const {
  std::string text = "0b";
  for (int place = std::numeric_limits<Word>::digits - 1; place >= 0; --place) {
    const Word bit = Word{1} << place;
    text.push_back((mask & bit) == 0 ? 'x' : (value & bit) == 0 ? '0' : '1');
  }
  return text;
}

template struct BitChange<std::uint32_t>;
template struct BitChange<std::uint64_t>;

std::string_view name_of(CpuidRegister reg) {
  constexpr std::array<std::string_view, 4> kNames = {"eax", "ebx", "ecx", "edx"};
  return kNames.at(static_cast<std::size_t>(reg));
}

Result<void> CpuTemplate::validate() const {
  MAYFLY_TRY(check_count(capabilities.size(), "kvm_capabilities"));
  MAYFLY_TRY(check_count(cpuid.size(), "cpuid_modifiers"));
  MAYFLY_TRY(check_count(msrs.size(), "msr_modifiers"));
  std::set<std::uint32_t> numbers;
  for (const CapabilityChange& change : capabilities) {
    if (!numbers.insert(change.number).second) {
      return refuse("kvm_capabilities: " + std::to_string(change.number) + " is named twice");
    }
  }
  std::set<std::pair<std::uint32_t, std::uint32_t>> leaves;
  for (const CpuidChange& change : cpuid) {
    const std::string name = "cpuid_modifiers: leaf " + hex(change.leaf) + ", subleaf " + hex(change.subleaf);
    if (!leaves.emplace(change.leaf, change.subleaf).second) {
      return refuse(name + ": is changed twice");
    }
    if (change.flags > kMaxCpuidFlags) {
      return refuse(name + ": flags " + std::to_string(change.flags) + ": must be 0 to " +
                    std::to_string(kMaxCpuidFlags));
    }
    MAYFLY_TRY(check_registers(change, name));
  }
  std::set<std::uint32_t> indices;
  for (const MsrChange& change : msrs) {
    const std::string name = "msr_modifiers: addr " + hex(change.index);
    if (!indices.insert(change.index).second) {
      return refuse(name + ": is changed twice");
    }
    const auto own = std::find_if(kOwnMsrs.begin(), kOwnMsrs.end(), [&change](const OwnMsrs& range) {
      return change.index >= range.first && change.index <= range.last;
    });
    if (own != kOwnMsrs.end()) {
      return refuse(name + ": " + std::string(own->what) + " is the machine's own");
    }
  }
  return {};
}

}  // namespace mayfly::x86_64
