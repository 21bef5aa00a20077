// The state in which a boot protocol wants the first vCPU, and the tables in guest memory that it rests on.
// Plain data: who runs vCPUs translates it.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "boot/boot.h"
#include "memory/guest_memory.h"

namespace mayfly::x86_64 {

// A segment register with its hidden part. Fields as in Intel SDM volume 3, "Segment Descriptors".
struct SegmentState {
  std::uint64_t base = 0;
  std::uint32_t limit = 0;  // bytes, granularity already applied
  std::uint16_t selector = 0;
  std::uint8_t type = 0;
  std::uint8_t dpl = 0;
  bool present = false;  // false: not usable
  bool s = false;        // code or data, not a system segment
  bool db = false;
  bool l = false;
  bool g = false;
  bool avl = false;
};

struct DescriptorTable {
  std::uint64_t base = 0;
  std::uint16_t limit = 0;  // bytes - 1
};

struct CpuBootState {
  std::uint64_t rip = 0;
  std::uint64_t rsp = 0;
  std::uint64_t rsi = 0;
  std::uint64_t rbx = 0;
  std::uint64_t rflags = 0;
  std::uint64_t cr0 = 0;
  std::uint64_t cr3 = 0;
  std::uint64_t cr4 = 0;
  std::uint64_t efer = 0;
  SegmentState cs;
  SegmentState ds;  // es, fs, gs and ss are as ds
  SegmentState es;
  SegmentState fs;
  SegmentState gs;
  SegmentState ss;
  SegmentState tr;
  SegmentState ldt;
  DescriptorTable gdt;
  DescriptorTable idt;  // empty: a fault before the kernel has its own table is a triple fault
};

// The 8 bytes in the GDT that describe `segment`.
std::uint64_t descriptor_of(const SegmentState& segment);

// PVH: 32-bit protected mode, flat segments, no paging, ebx = start info. Writes the GDT.
Result<CpuBootState> make_pvh_state(GuestMemory& memory, GuestAddress entry);

// Linux, 64-bit protocol: long mode, identity-mapped up to layout::kIdentityMapEnd, rsi = zero page. Writes
// the GDT and the page tables.
Result<CpuBootState> make_linux64_state(GuestMemory& memory, GuestAddress entry);

}  // namespace mayfly::x86_64
