// What a guest has set in KVM's I/O APIC.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "kvm/vm.h"

namespace mayfly::x86_64 {

// KVM_GET_IRQCHIP (api.rst 4.26): whether the guest lets an edge on `gsi` through. Each pin is masked until a
// driver takes its interrupt. Error kInvalidArgument for a gsi past Vm::kGsiCount.
Result<bool> guest_takes_line(const Vm& vm, std::uint32_t gsi);

}  // namespace mayfly::x86_64
