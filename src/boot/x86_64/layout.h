// The guest-physical map of an x86-64 microVM. Where the dialect's own layout is named it is kept, so that
// the same guests and tools work.
#pragma once

#include <cstdint>

#include "memory/x86_64/ranges.h"

namespace mayfly::x86_64::layout {

inline constexpr std::uint64_t kGdt = 0x500;
inline constexpr std::uint64_t kPvhStartInfo = 0x6000;
inline constexpr std::uint64_t kZeroPage = 0x7000;
inline constexpr std::uint64_t kPml4 = 0x9000;
inline constexpr std::uint64_t kPdpt = 0xa000;
inline constexpr std::uint64_t kPageDirectory = 0xb000;
inline constexpr std::uint64_t kBootStackPointer = 0x8ff0;
inline constexpr std::uint64_t kCommandLine = 0x20000;
inline constexpr std::uint64_t kCommandLineMax = 2048;  // bytes, the terminating NUL included

// [0x9fc00, 0x100000) is reserved in the guest's memory map: the MP table and ACPI tables live there.
inline constexpr std::uint64_t kSystemAreaStart = 0x9fc00;
inline constexpr std::uint64_t kMpTable = 0x9fc00;  // the last KiB of base memory
inline constexpr std::uint64_t kMpTableMax = 1024;  // bytes
inline constexpr std::uint64_t kSystemAreaEnd = 0x100000;
// One page for the VM generation id, which is not the tables' so that it can be written alone.
inline constexpr std::uint64_t kVmGenIdPage = 0xdf000;
inline constexpr std::uint64_t kRsdp = 0xe0000;
inline constexpr std::uint64_t kHighMemoryStart = 0x100000;  // kernels go from here on

// What the page tables of the 64-bit entry map: the kernel and all boot data must lie below.
inline constexpr std::uint64_t kIdentityMapEnd = 0x40000000;

using x86_64::kMmioGapEnd;                              // RAM goes on here
using x86_64::kMmioGapStart;                            // RAM ends here at the latest
inline constexpr std::uint64_t kBootMark = 0xc0000000;  // one page
inline constexpr std::uint64_t kVirtioMmioStart = 0xc0001000;
inline constexpr std::uint64_t kVirtioMmioWindow = 0x1000;  // bytes a device
inline constexpr std::uint64_t kIoApic = 0xfec00000;
inline constexpr std::uint64_t kLocalApic = 0xfee00000;
using x86_64::kRealModePages;  // three pages that KVM needs on Intel hosts

inline constexpr std::uint16_t kSerialPort = 0x3f8;
inline constexpr std::uint32_t kSerialIrq = 4;
inline constexpr std::uint16_t kI8042DataPort = 0x60;
inline constexpr std::uint16_t kI8042CommandPort = 0x64;
// ACPI registers, in I/O space: sleep control, sleep status, reset (one byte each).
inline constexpr std::uint16_t kPowerPort = 0x600;
// Interrupts of the generic event device.
inline constexpr std::uint32_t kVmGenIdGsi = 3;
inline constexpr std::uint32_t kShutdownRequestGsi = 5;
inline constexpr std::uint32_t kVirtioFirstGsi = 6;     // legacy pins first, then 16..23
inline constexpr std::uint32_t kMaxVirtioDevices = 18;  // one line each, up to the I/O APIC's last pin, 23
inline constexpr std::uint32_t kMaxVcpus = 32;

}  // namespace mayfly::x86_64::layout

namespace mayfly::x86_64 {

// Where the virtio device with that index is found; indices from 0 to kMaxVirtioDevices - 1.
struct VirtioPlace {
  std::uint64_t base;
  std::uint32_t gsi;
};

constexpr VirtioPlace virtio_place(std::uint32_t index) {
  return {layout::kVirtioMmioStart + index * layout::kVirtioMmioWindow, layout::kVirtioFirstGsi + index};
}

}  // namespace mayfly::x86_64
