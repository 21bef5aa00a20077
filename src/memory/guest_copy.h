// The room's one way of touching the bytes of guest RAM in bulk. Private to memory/: others go through
// GuestMemory and GuestSlice, which check addresses first.
//
// vCPUs write these bytes while we copy them, with no synchronisation that C++ knows of. Guest RAM is
// therefore treated as what `volatile` is for, storage that changes outside the abstract machine: every byte
// of the guest's side is accessed once, by an access that the compiler may not repeat, merge, drop or invent.
// So a copy, once made, is what later checks see: the compiler cannot go back to guest RAM for it. A copy may
// tear: it may hold part of an old value and part of a new one, in any mixture.
//
// memcpy() promises none of that (a compiler may fold it away and read the source again), and ThreadSanitizer
// reports calls to it as races. Nor is it faster by much. Measured on a Zen core with FSRM, these loops of
// 16-byte volatile accesses, glibc's memcpy() and `rep movsb`:
//   - 4 KiB in the first cache, destination aligned: 69, 41 and 41 ns; misaligned: 83, 1,140 and 1,150 ns;
//   - 1 MiB, destination aligned: 21 us each; misaligned: 27, 22 and 300 us.
// The alignment of the source makes no difference.
#pragma once

#include <cstddef>

namespace mayfly {

// `guest` points to `size` bytes of guest RAM, `to` and `from` to as many of our own; they do not overlap.
void copy_from_guest(void* to, const volatile void* guest, std::size_t size) noexcept;
void copy_to_guest(volatile void* guest, const void* from, std::size_t size) noexcept;
void fill_guest(volatile void* guest, std::byte value, std::size_t size) noexcept;

// Whether all `size` bytes of guest RAM are 0, each looked at once, and none behind the first 64 in which one
// is not. A multiple of 64 bytes.
bool is_zero_in_guest(const volatile void* guest, std::size_t size) noexcept;

}  // namespace mayfly
