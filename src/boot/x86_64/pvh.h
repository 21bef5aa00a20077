// The start info of PVH, the "x86/HVM direct boot ABI" (Xen, docs/misc/pvh.pandoc; structures from
// xen/include/public/arch-x86/hvm/start_info.h).
#pragma once

#include <cstdint>

#include "base/result.h"
#include "boot/boot_plan.h"
#include "boot/x86_64/layout.h"
#include "memory/guest_memory.h"

namespace mayfly::x86_64 {

inline constexpr std::uint32_t kPvhMagic = 0x336ec578;  // XEN_HVM_START_MAGIC_VALUE: "xEn3" with bit 31 set

struct HvmStartInfo {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint32_t flags;
  std::uint32_t nr_modules;
  std::uint64_t modlist_paddr;
  std::uint64_t cmdline_paddr;
  std::uint64_t rsdp_paddr;
  // Version 1 and newer.
  std::uint64_t memmap_paddr;
  std::uint32_t memmap_entries;
  std::uint32_t reserved;
};
static_assert(sizeof(HvmStartInfo) == 56);

struct HvmModlistEntry {
  std::uint64_t paddr;
  std::uint64_t size;  // bytes
  std::uint64_t cmdline_paddr;
  std::uint64_t reserved;
};
static_assert(sizeof(HvmModlistEntry) == 32);

struct HvmMemmapTableEntry {
  std::uint64_t addr;
  std::uint64_t size;  // bytes
  std::uint32_t type;  // as in an E820 map
  std::uint32_t reserved;
};
static_assert(sizeof(HvmMemmapTableEntry) == 24);

// The three stand on one page.
inline constexpr std::uint64_t kPvhModlist = layout::kPvhStartInfo + 0x40;
inline constexpr std::uint64_t kPvhMemmap = layout::kPvhStartInfo + 0x60;

// Writes the start info at layout::kPvhStartInfo with the initrd as its module and the command line at
// layout::kCommandLine (not written here). Errors as for write_zero_page().
Result<void> write_pvh_start_info(GuestMemory& memory, const BootPlan& plan);

}  // namespace mayfly::x86_64
