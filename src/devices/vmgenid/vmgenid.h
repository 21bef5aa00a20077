// The VM generation id: a number in guest memory by which a guest notices that it has become a copy of
// itself.
//
// After Microsoft, "Virtual Machine Generation ID" (2012). The number lies in a page of guest RAM that the
// guest's memory map reserves and that nothing else uses. Firmware tables tell the guest where, and an
// interrupt that it has changed: both are whoever's who builds the machine. In the same page lies a mark that
// ties a snapshot's memory file to its state file; no guest is told of it.
//
//   offset in the page   16 bytes
//   0x100                the generation
//   0x200                the snapshot mark; zeros: never saved
//   0x210                of memory that is a diff: the mark of what it is a diff to; else zeros
//   0x220                of a file that is a diff: which pages it has (memory/memory_file.h); else zeros
//
// Both keep away from the page's start and its middle, where a PC's operating system looks for the signature
// of an expansion ROM.
//
// Plain functions on guest memory, and all the state there is. The guest may write the page, too: to mislead
// itself alone. What is read back is as untrusted as any of its memory. A number that is written while a vCPU
// runs may be seen half.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "memory/guest_address.h"
#include "memory/guest_memory.h"

namespace mayfly {

// 128 bits from a cryptographic source, without any structure.
using RandomId = std::array<std::byte, 16>;

inline constexpr std::uint64_t kGenerationOffset = 0x100;
inline constexpr std::uint64_t kSnapshotMarkOffset = 0x200;
inline constexpr std::uint64_t kSnapshotBaseOffset = 0x210;
inline constexpr std::uint64_t kDiffPagesOffset = 0x220;
inline constexpr std::uint64_t kGenerationPageSize = 0x1000;  // bytes; its address is a multiple of it, too

// From getrandom(2), which has no state in this process: two copies of it never make the same one.
Result<RandomId> make_random_id();

// Errors of all: kOutOfRange where there is no such page of RAM.
Result<void> write_generation(GuestMemory& memory, GuestAddress page, const RandomId& generation);
Result<RandomId> read_generation(const GuestMemory& memory, GuestAddress page);
Result<void> write_snapshot_mark(GuestMemory& memory, GuestAddress page, const RandomId& mark);
Result<RandomId> read_snapshot_mark(const GuestMemory& memory, GuestAddress page);
// With zeros for which pages a file has: that is the file's alone.
Result<void> write_snapshot_base(GuestMemory& memory, GuestAddress page, const RandomId& mark);
Result<RandomId> read_snapshot_base(const GuestMemory& memory, GuestAddress page);
// How many pages a file that is a diff notes that it has; 0: it is none, or an earlier version wrote it.
Result<std::uint64_t> read_diff_page_count(const GuestMemory& memory, GuestAddress page);

}  // namespace mayfly
