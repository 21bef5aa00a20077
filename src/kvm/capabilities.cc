#include "kvm/capabilities.h"

namespace mayfly {

Result<std::vector<std::string>> check_capabilities(std::span<const Capability> wanted,
                                                    const std::function<int(std::uint32_t)>& check) {
  std::vector<std::string> warnings;
  std::string missing;
  for (const Capability& capability : wanted) {
    if (check(capability.number) > 0) {
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

}  // namespace mayfly
