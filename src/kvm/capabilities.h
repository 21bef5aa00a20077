// What this monitor asks of a KVM, as data.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mayfly {

enum class Need : std::uint8_t {
  kEssential,  // no guest starts without it
  kOptional,   // guests run; what is lost is said in a warning
};

struct Capability {
  std::uint32_t number;       // KVM_CAP_*
  std::string_view name;      // as <linux/kvm.h> spells it
  std::string_view what_for;  // "guest RAM made of the monitor's own memory"
  Need need;
};

// The capabilities of the architecture this is built for, essential ones first.
std::span<const Capability> wanted_capabilities();

// What a configuration changes of that.
struct CapabilityChange {
  std::uint32_t number = 0;  // KVM_CAP_*
  bool required = true;      // false: not asked for, and its absence not spoken of
  bool operator==(const CapabilityChange&) const = default;
};

// KVM_CHECK_EXTENSION: 0 where the KVM lacks it, else positive.
using CapabilityCheck = std::function<int(std::uint32_t)>;

// Asks `check` once for each of `wanted` that `changes` do not take off the list. Answers a warning for each
// optional one that is missing. Error kUnsupported names every essential one that is missing and what it is
// for.
Result<std::vector<std::string>> check_capabilities(std::span<const Capability> wanted,
                                                    const CapabilityCheck& check,
                                                    std::span<const CapabilityChange> changes = {});

// Error kUnsupported, naming the first that `changes` require and this KVM lacks.
Result<void> check_required(std::span<const CapabilityChange> changes, const CapabilityCheck& check);

}  // namespace mayfly
