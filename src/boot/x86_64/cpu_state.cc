#include "boot/x86_64/cpu_state.h"

#include <array>
#include <cstddef>
#include <span>

#include "boot/x86_64/layout.h"

namespace mayfly::x86_64 {
namespace {

// Intel SDM volume 3, "Control Registers", "Extended Feature Enable Register".
constexpr std::uint64_t kCr0ProtectionEnable = 1U << 0;
constexpr std::uint64_t kCr0ExtensionType = 1U << 4;  // always 1 on hardware
constexpr std::uint64_t kCr0Paging = std::uint64_t{1} << 31;
constexpr std::uint64_t kCr4PhysicalAddressExtension = 1U << 5;
constexpr std::uint64_t kEferLongModeEnable = 1U << 8;
constexpr std::uint64_t kEferLongModeActive = 1U << 10;
constexpr std::uint64_t kRflagsAlwaysOne = 1U << 1;  // and nothing else: interrupts off, no single-stepping

// Segment types (SDM volume 3, "Code- and Data-Segment Descriptor Types", "System Descriptor Types"); both
// marked accessed, as loading them would, so that the processor need not write to the GDT.
constexpr std::uint8_t kTypeCode = 0xb;  // execute/read, accessed
constexpr std::uint8_t kTypeData = 0x3;  // read/write, accessed
constexpr std::uint8_t kTypeTss = 0xb;   // busy: what a loaded task register must hold
constexpr std::uint8_t kTypeLdt = 0x2;

// boot.rst, "64-bit Boot Protocol": __BOOT_CS and __BOOT_DS. PVH leaves selectors open and gets the same.
constexpr std::uint16_t kCodeSelector = 0x10;
constexpr std::uint16_t kDataSelector = 0x18;
constexpr std::uint16_t kTssSelector = 0x20;  // 16 bytes in long mode
constexpr std::size_t kGdtEntries = 6;

// SDM volume 3, "IA-32e Paging".
constexpr std::uint64_t kPagePresentWritable = 0x3;
constexpr std::uint64_t kPageLarge = 1U << 7;
constexpr std::uint64_t kLargePageSize = 2 * 1024 * 1024;
constexpr std::size_t kTableEntries = 512;
static_assert(layout::kIdentityMapEnd == kTableEntries * kLargePageSize);

SegmentState flat_segment(std::uint16_t selector, std::uint8_t type) {
  SegmentState segment;
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = type;
  segment.present = true;
  segment.s = true;
  segment.db = true;
  segment.g = true;
  return segment;
}

CpuBootState make_common_state(GuestAddress entry) {
  CpuBootState state;
  state.rip = entry.value();
  state.rsp = layout::kBootStackPointer;
  state.rflags = kRflagsAlwaysOne;
  state.cr0 = kCr0ProtectionEnable | kCr0ExtensionType;
  state.cs = flat_segment(kCodeSelector, kTypeCode);
  state.ds = flat_segment(kDataSelector, kTypeData);
  state.es = state.fs = state.gs = state.ss = state.ds;
  state.tr.selector = kTssSelector;
  state.tr.limit = 0x67;  // the smallest that a TSS may have, as PVH asks for
  state.tr.type = kTypeTss;
  state.tr.present = true;
  state.ldt.type = kTypeLdt;
  state.gdt = {layout::kGdt, kGdtEntries * sizeof(std::uint64_t) - 1};
  return state;
}

Result<void> write_table(GuestMemory& memory, std::uint64_t address, std::span<const std::uint64_t> entries) {
  const auto written = memory.write(GuestAddress(address), std::as_bytes(entries));
  if (!written) {
    return tl::make_unexpected(written.error().to_error().within("write the boot tables"));
  }
  return {};
}

Result<void> write_gdt(GuestMemory& memory, const CpuBootState& state) {
  std::array<std::uint64_t, kGdtEntries> gdt{};
  gdt[kCodeSelector / sizeof(std::uint64_t)] = descriptor_of(state.cs);
  gdt[kDataSelector / sizeof(std::uint64_t)] = descriptor_of(state.ds);
  gdt[kTssSelector / sizeof(std::uint64_t)] = descriptor_of(state.tr);
  return write_table(memory, state.gdt.base, gdt);
}

Result<void> write_page_tables(GuestMemory& memory) {
  std::array<std::uint64_t, kTableEntries> pages{};
  for (std::size_t i = 0; i < pages.size(); ++i) {
    pages[i] = i * kLargePageSize | kPageLarge | kPagePresentWritable;
  }
  // One entry each of the upper tables is enough; the others are zero, not present, as the memory is fresh.
  const std::array pml4{layout::kPdpt | kPagePresentWritable};
  const std::array pdpt{layout::kPageDirectory | kPagePresentWritable};
  MAYFLY_TRY(write_table(memory, layout::kPml4, pml4));
  MAYFLY_TRY(write_table(memory, layout::kPdpt, pdpt));
  return write_table(memory, layout::kPageDirectory, pages);
}

}  // namespace

// SDM volume 3, figure "Segment Descriptor".
std::uint64_t descriptor_of(const SegmentState& segment) {
  const std::uint64_t limit = segment.g ? segment.limit >> 12 : segment.limit;
  const auto bit = [](bool value, int at) { return std::uint64_t{value} << at; };
  return (limit & 0xffff) | (segment.base & 0xffffff) << 16 | std::uint64_t{segment.type} << 40 |
         bit(segment.s, 44) | std::uint64_t{segment.dpl} << 45 | bit(segment.present, 47) |
         (limit >> 16 & 0xf) << 48 | bit(segment.avl, 52) | bit(segment.l, 53) | bit(segment.db, 54) |
         bit(segment.g, 55) | (segment.base >> 24 & 0xff) << 56;
}

Result<CpuBootState> make_pvh_state(GuestMemory& memory, GuestAddress entry) {
  CpuBootState state = make_common_state(entry);
  state.rbx = layout::kPvhStartInfo;
  MAYFLY_TRY(write_gdt(memory, state));
  return state;
}

Result<CpuBootState> make_linux64_state(GuestMemory& memory, GuestAddress entry) {
  CpuBootState state = make_common_state(entry);
  state.rsi = layout::kZeroPage;
  state.cr0 |= kCr0Paging;
  state.cr3 = layout::kPml4;
  state.cr4 = kCr4PhysicalAddressExtension;
  state.efer = kEferLongModeEnable | kEferLongModeActive;
  state.cs.l = true;
  state.cs.db = false;  // SDM: must be 0 in a 64-bit code segment
  MAYFLY_TRY(write_gdt(memory, state));
  MAYFLY_TRY(write_page_tables(memory));
  return state;
}

}  // namespace mayfly::x86_64
