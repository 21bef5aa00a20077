#include "boot/x86_64/pvh.h"

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "boot/x86_64/memory_map.h"

namespace mayfly::x86_64 {
namespace {

static_assert(sizeof(HvmStartInfo) <= kPvhModlist - layout::kPvhStartInfo);
static_assert(sizeof(HvmModlistEntry) <= kPvhMemmap - kPvhModlist);
constexpr std::size_t kMaxMemmapEntries = (layout::kZeroPage - kPvhMemmap) / sizeof(HvmMemmapTableEntry);

}  // namespace

Result<void> write_pvh_start_info(GuestMemory& memory, const BootPlan& plan) {
  std::vector<HvmMemmapTableEntry> memmap;
  for (const MemoryMapEntry& entry : make_memory_map(memory)) {
    memmap.push_back(
        {entry.range.base().value(), entry.range.size(), static_cast<std::uint32_t>(entry.type), 0});
  }
  if (memmap.size() > kMaxMemmapEntries) {
    return fail(ErrorCode::kInvalidArgument, "PVH start info: memory in " + std::to_string(memmap.size()) +
                                                 " pieces is more than the " +
                                                 std::to_string(kMaxMemmapEntries) + " it can list");
  }
  HvmStartInfo info{};
  info.magic = kPvhMagic;
  info.version = 1;
  info.cmdline_paddr = layout::kCommandLine;
  info.rsdp_paddr = plan.rsdp ? plan.rsdp->value() : 0;
  info.memmap_paddr = kPvhMemmap;
  info.memmap_entries = static_cast<std::uint32_t>(memmap.size());
  HvmModlistEntry initrd{};
  if (plan.initrd) {
    info.nr_modules = 1;
    info.modlist_paddr = kPvhModlist;
    initrd.paddr = plan.initrd->base().value();
    initrd.size = plan.initrd->size();
  }
  const auto written =
      memory.write_object(GuestAddress(layout::kPvhStartInfo), info)
          .and_then([&] { return memory.write_object(GuestAddress(kPvhModlist), initrd); })
          .and_then([&] { return memory.write(GuestAddress(kPvhMemmap), std::as_bytes(std::span(memmap))); });
  if (!written) {
    return tl::make_unexpected(written.error().to_error().within("write the PVH start info"));
  }
  return {};
}

}  // namespace mayfly::x86_64
