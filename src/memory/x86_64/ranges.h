// Where the RAM of an x86-64 guest lies in its physical address space.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "memory/guest_address.h"

namespace mayfly::x86_64 {

// RAM leaves a hole below 4 GiB for the interrupt controllers and the devices.
inline constexpr std::uint64_t kMmioGapStart = 0xc0000000;  // RAM ends here at the latest ...
inline constexpr std::uint64_t kMmioGapEnd = 0x100000000;   // ... and goes on here

// Three pages in the hole that Intel processors without unrestricted guest mode need to run real mode
// (KVM_SET_TSS_ADDR, api.rst 4.36). The page before them is KVM's own default for the identity map.
inline constexpr std::uint64_t kRealModePages = 0xfffbd000;

inline constexpr std::uint64_t kMinMemorySize = 1ULL << 20;  // bytes: real-mode structures and no kernel
// An x86-64 processor has at most 52 bits of physical address (SDM volume 3A, section 4.1.4: MAXPHYADDR). The
// host's own processor mostly has fewer; that is for the one who creates the VM to check.
inline constexpr std::uint64_t kMaxMemorySize = (1ULL << 52) - (kMmioGapEnd - kMmioGapStart);

// The ranges that hold `size` bytes of RAM, ascending: one from 0 up to the hole and, for what is more than
// that, one from 4 GiB on. Errors: kInvalidArgument for a size outside the limits above or not a multiple of
// 4 KiB.
Result<std::vector<GuestRange>> memory_ranges(std::uint64_t size);

}  // namespace mayfly::x86_64
