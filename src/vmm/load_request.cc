#include "vmm/load_request.h"

#include <set>

namespace mayfly {

std::optional<RepeatedOverride> find_repeated_override(const LoadRequest& request) {
  using Kind = RepeatedOverride::Kind;
  std::set<std::string> drives;
  std::set<std::string> taps;
  std::set<std::string> macs;
  for (const DriveOverride& change : request.drives) {
    if (!drives.insert(change.id).second) {
      return RepeatedOverride{Kind::kDrive, change.id};
    }
  }
  for (const NetworkOverride& change : request.networks) {
    if (change.tap && !taps.insert(change.id).second) {
      return RepeatedOverride{Kind::kTap, change.id};
    }
    if (change.mac && !macs.insert(change.id).second) {
      return RepeatedOverride{Kind::kMac, change.id};
    }
  }
  return std::nullopt;
}

}  // namespace mayfly
