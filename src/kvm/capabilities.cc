#include "kvm/capabilities.h"

#include <algorithm>

namespace mayfly {

Result<std::vector<std::string>> check_capabilities(std::span<const Capability> wanted,
                                                    const CapabilityCheck& check,
                                                    std::span<const CapabilityChange> changes) {
  std::vector<std::string> warnings;
  std::string missing;
  for (const Capability& capability : wanted) {
    const CapabilityChange unasked{capability.number, false};
    if (std::find(changes.begin(), changes.end(), unasked) != changes.end() || check(capability.number) > 0) {
      continue;
    }
    std::string text;
    text.append(capability.name).append(" (").append(capability.what_for).append(")");
    if (capability.need == Need::kOptional) {
      warnings.push_back("this KVM lacks " + text);
    } else {
      missing.append(missing.empty() ? "" : ", ").append(text);
    }
  }
  if (!missing.empty()) {
    return fail(
        ErrorCode::kUnsupported,
        "this KVM lacks what every guest needs: " + missing +
            "; a Linux kernel of 4.13 or later with the kvm-intel or kvm-amd module offers all of it");
  }
  return warnings;
}

Result<void> check_required(std::span<const CapabilityChange> changes, const CapabilityCheck& check) {
  for (const CapabilityChange& change : changes) {
    if (change.required && check(change.number) <= 0) {
      return fail(ErrorCode::kUnsupported, "kvm_capabilities: this host's KVM lacks capability " +
                                               std::to_string(change.number) + ", which is required");
    }
  }
  return {};
}

}  // namespace mayfly
