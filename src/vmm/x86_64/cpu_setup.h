// A boot protocol's plain CPU state into a KVM vCPU's registers.
#pragma once

#include "base/result.h"
#include "boot/x86_64/cpu_state.h"
#include "kvm/vcpu.h"

namespace mayfly::x86_64 {

// Sets the general, segment and control registers and the x87 state of the first vCPU. The others are left as
// KVM makes them: waiting for the start-up interrupt of the first.
Result<void> apply_boot_state(const Vcpu& vcpu, const CpuBootState& state);

}  // namespace mayfly::x86_64
