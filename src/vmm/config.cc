#include "vmm/config.h"

#include <set>
#include <string>
#include <string_view>

namespace mayfly {

Result<void> MachineConfig::validate() const {
  if (vcpu_count < 1 || vcpu_count > kMaxVcpus) {
    return fail(ErrorCode::kInvalidArgument,
                "vcpu_count " + std::to_string(vcpu_count) + ": must be 1 to " + std::to_string(kMaxVcpus));
  }
  if (smt && vcpu_count != 1 && vcpu_count % 2 != 0) {
    return fail(ErrorCode::kInvalidArgument,
                "vcpu_count " + std::to_string(vcpu_count) + ": must be 1 or even when smt is true");
  }
  if (mem_size_mib < 1 || mem_size_mib > kMaxMemoryMib) {
    return fail(ErrorCode::kInvalidArgument, "mem_size_mib " + std::to_string(mem_size_mib) +
                                                 ": must be 1 to " + std::to_string(kMaxMemoryMib));
  }
  if (huge_pages == HugePages::k2M && mem_size_mib % 2 != 0) {
    return fail(ErrorCode::kInvalidArgument,
                "mem_size_mib " + std::to_string(mem_size_mib) +
                    ": must be a multiple of 2 when huge_pages is 2M (--huge-pages)");
  }
  return {};
}

Result<void> VmConfig::validate_devices() const {
  if (drives.size() + networks.size() > kMaxVirtioDevices) {
    return fail(ErrorCode::kInvalidArgument, "there are " + std::to_string(drives.size() + networks.size()) +
                                                 " drives and network interfaces: at most " +
                                                 std::to_string(kMaxVirtioDevices) + " find room");
  }
  const BlockDeviceConfig* root = nullptr;
  std::set<std::string_view> ids;
  for (const BlockDeviceConfig& drive : drives) {
    MAYFLY_TRY(drive.validate());
    if (!ids.insert(drive.id).second) {
      return fail(ErrorCode::kInvalidArgument, "drive " + drive.id + ": another drive has this id");
    }
    if (drive.is_root && root != nullptr) {
      return fail(ErrorCode::kInvalidArgument,
                  "drive " + drive.id + ": drive " + root->id + " is the root device already");
    }
    root = drive.is_root ? &drive : root;
  }
  std::set<std::string_view> interfaces;
  std::set<std::string_view> taps;
  std::set<std::string> addresses;
  for (const NetDeviceConfig& network : networks) {
    MAYFLY_TRY(network.validate());
    const auto taken = [&network](const std::string& what) {
      return fail(ErrorCode::kInvalidArgument, "interface " + network.id + ": another interface has " + what);
    };
    if (!interfaces.insert(network.id).second) {
      return taken("this id");
    }
    if (network.mac && !addresses.insert(network.mac->to_string()).second) {
      return taken("the MAC address " + network.mac->to_string());
    }
    const auto* tap = std::get_if<TapConfig>(&network.backend);
    if (tap != nullptr && !taps.insert(tap->name).second) {
      return taken("the tap " + tap->name);
    }
  }
  return {};
}

}  // namespace mayfly
