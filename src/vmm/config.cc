#include "vmm/config.h"

#include <algorithm>
#include <bit>
#include <set>
#include <string>
#include <string_view>

#include "boot/x86_64/layout.h"
#include "memory/x86_64/ranges.h"

namespace mayfly {

Result<void> MachineConfig::validate() const {
  if (vcpu_count < 1 || vcpu_count > x86_64::layout::kMaxVcpus) {
    return fail(ErrorCode::kInvalidArgument, "vcpu_count " + std::to_string(vcpu_count) + ": must be 1 to " +
                                                 std::to_string(x86_64::layout::kMaxVcpus));
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
    return fail(ErrorCode::kInvalidArgument, "mem_size_mib " + std::to_string(mem_size_mib) +
                                                 ": must be a multiple of 2 when huge_pages is 2M");
  }
  return {};
}

Result<void> VmConfig::validate_devices() const {
  if (drives.size() > x86_64::layout::kMaxVirtioDevices) {
    return fail(ErrorCode::kInvalidArgument, "there are " + std::to_string(drives.size()) +
                                                 " drives and network interfaces: at most " +
                                                 std::to_string(x86_64::layout::kMaxVirtioDevices) + " find room");
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
  return {};
}

Result<void> MachineConfig::check_address_bits(unsigned (*bits)()) const {
  MAYFLY_TRY_ASSIGN(const auto ranges, x86_64::memory_ranges(mem_size_mib << 20));
  const std::uint64_t last = ranges.back().last().value();
  if (last < x86_64::kMmioGapEnd) {
    return {};
  }
  const unsigned width = bits();
  if (static_cast<unsigned>(std::bit_width(last)) <= width) {
    return {};
  }
  const std::uint64_t gap_mib = (x86_64::kMmioGapEnd - x86_64::kMmioGapStart) >> 20;
  const std::uint64_t most = std::max((std::uint64_t{1} << width) >> 20, x86_64::kMmioGapEnd >> 20) - gap_mib;
  return fail(ErrorCode::kInvalidArgument, "mem_size_mib " + std::to_string(mem_size_mib) +
                                               ": must be at most " + std::to_string(most) +
                                               " on this host, whose processor has " + std::to_string(width) +
                                               " bits of physical address");
}

}  // namespace mayfly
