// What loading a kernel yields: the plain data from which a vCPU is started. No KVM types here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "memory/guest_address.h"

namespace mayfly {

enum class BootProtocol : std::uint8_t {
  kPvh,      // the ELF note's 32-bit entry (Xen PVH, "x86/HVM direct boot ABI")
  kLinux64,  // the 64-bit entry of the Linux boot protocol, from an ELF or a bzImage
};

// How a kernel image is to be entered; Auto prefers PVH where the image offers it.
enum class BootProtocolChoice : std::uint8_t { kAuto, kPvh, kLinux64 };

struct BootEntry {
  BootProtocol protocol;
  GuestAddress entry;
};

}  // namespace mayfly
