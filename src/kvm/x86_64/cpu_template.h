// What a configuration changes of the processor that guests see: a CPU template of the dialect, as plain
// data. How it is applied: apply_template.h.
//
// References: SDM = Intel 64 and IA-32 Architectures Software Developer's Manual; APM = AMD64 Architecture
// Programmer's Manual.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kvm/capabilities.h"

namespace mayfly::x86_64 {

// Bits of a register of the type Word: those in `mask` become those of `value`, all others stay.
template <typename Word>
struct BitChange {
  Word mask = 0;
  Word value = 0;  // no bit that is not in `mask`

  // "0b0xx1": from the highest bit to the lowest, 0 and 1 as they are to be, x for one that stays. '_' may
  // stand anywhere behind the prefix, and bits that are not written stay. kInvalidArgument for other
  // characters, for more bits than a Word has, and for none.
  static Result<BitChange> parse(std::string_view text);
  // All bits, with the prefix.
  std::string to_string() const;

  constexpr Word apply(Word word) const { return (word & ~mask) | value; }
  bool operator==(const BitChange&) const = default;
};
extern template struct BitChange<std::uint32_t>;
extern template struct BitChange<std::uint64_t>;

enum class CpuidRegister : std::uint8_t { kEax, kEbx, kEcx, kEdx };
// "eax".
std::string_view name_of(CpuidRegister reg);

struct CpuidRegisterChange {
  CpuidRegister reg = CpuidRegister::kEax;
  BitChange<std::uint32_t> bits;
};

struct CpuidChange {
  std::uint32_t leaf = 0;
  std::uint32_t subleaf = 0;
  std::uint32_t flags = 0;  // KVM_CPUID_FLAG_*, as KVM lists the leaf
  std::vector<CpuidRegisterChange> registers;
};

struct MsrChange {
  std::uint32_t index = 0;
  BitChange<std::uint64_t> bits;
};

// The flags of a CPUID entry that KVM knows (api.rst 4.20).
inline constexpr std::uint32_t kMaxCpuidFlags = 7;

struct CpuTemplate {
  // As many as KVM takes at once of either.
  static constexpr std::size_t kMaxChanges = 256;

  std::vector<CapabilityChange> capabilities;
  std::vector<CpuidChange> cpuid;
  std::vector<MsrChange> msrs;

  // What can be said without a KVM. kInvalidArgument, naming the field, for more than kMaxChanges of a kind,
  // for what is changed twice, for flags that KVM does not know, and for what no guest of this monitor can
  // have:
  // - CPUID bits that stand for nested virtualization, SGX, processor trace or AMX (cpuid.h says why), set;
  // - MSRs of the local APIC and its timer, of memory types, and of the state in which a boot protocol enters
  //   the kernel (EFER, segment bases).
  Result<void> validate() const;
};

}  // namespace mayfly::x86_64
