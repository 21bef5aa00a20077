#include "vmm/config.h"

#include <string>

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
    return fail(ErrorCode::kInvalidArgument, "mem_size_mib " + std::to_string(mem_size_mib) +
                                                 ": must be a multiple of 2 when huge_pages is 2M");
  }
  return {};
}

}  // namespace mayfly
