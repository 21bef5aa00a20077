// The only door to guest RAM.
//
// A guest's vCPUs change its memory at any time, so nothing here hands out a reference, a pointer or a
// std::span into it: values are copied in and out, and a GuestSlice names a checked stretch for a system call
// or a copy. Every access is checked against the ranges at the time of the access. Thread-safe: the ranges
// never change after create().
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_address.h"

namespace mayfly {

// An access outside guest RAM, or across the end of one of its ranges. Trivial, so that a hot path that
// refuses a hostile address allocates nothing; to_error() words it where a person will read it.
struct MemoryFault {
  GuestAddress address;
  std::uint64_t length = 0;  // bytes

  Error to_error() const;
};

template <typename T>
using MemoryResult = tl::expected<T, MemoryFault>;

// What stands behind guest RAM.
enum class Backing : std::uint8_t {
  kAnonymous,        // private anonymous pages; untouched ones cost nothing (the default; huge_pages "None")
  kTransparentHuge,  // as above, with MADV_HUGEPAGE (huge_pages "Transparent")
  kMemfd,            // a memfd mapped shared, so that another process can map it too
  kHugetlb2M,        // a memfd of 2 MiB huge pages (huge_pages "2M"); sizes must be multiples of 2 MiB
};

// A contiguous, checked stretch of guest RAM: for copies and as an iovec for system calls. Valid as long as
// the GuestMemory it came from. What it covers may change under every look: copy first, then check, then use.
class GuestSlice {
 public:
  std::size_t size() const { return size_; }  // bytes
  GuestAddress address() const { return address_; }

  // Copies to or from the slice; the span must not be longer than the slice.
  void copy_to(std::span<std::byte> destination) const;
  void copy_from(std::span<const std::byte> source) const;

  // For readv(2), writev(2) and their kin only: the kernel accesses the bytes, never we through the pointer.
  iovec for_system_call() const { return {host_, size_}; }

 private:
  friend class GuestMemory;
  GuestSlice(void* host, std::size_t size, GuestAddress address)
      : host_(host), size_(size), address_(address) {}

  void* host_;
  std::size_t size_;
  GuestAddress address_;
};

// One range of guest RAM as the hypervisor maps it.
struct MemoryRegion {
  GuestRange range;
  void* host;      // start of the mapping in this process; page-aligned, 2 MiB-aligned where possible
  int backing_fd;  // -1 for anonymous memory; borrowed from the GuestMemory
  std::uint64_t backing_offset;  // bytes
};

class GuestMemory {
 public:
  // Maps RAM for `ranges`: ascending, not overlapping, page-aligned base and size. Errors: kInvalidArgument
  // for ranges that are not so, kExhausted where the host cannot map or reserve that much, kUnsupported or
  // kNotFound where the host has no such huge pages; each says which and what to do about it.
  static Result<GuestMemory> create(std::span<const GuestRange> ranges, Backing backing);

  GuestMemory(GuestMemory&&) noexcept;
  GuestMemory& operator=(GuestMemory&&) noexcept;
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;
  ~GuestMemory();

  std::span<const MemoryRegion> regions() const { return regions_; }
  std::uint64_t size() const;                    // bytes of RAM in all ranges together
  bool contains(const GuestRange& range) const;  // whole, and within one range

  // Copies. An access must lie in one range whole.
  MemoryResult<void> read(GuestAddress address, std::span<std::byte> destination) const;
  MemoryResult<void> write(GuestAddress address, std::span<const std::byte> source);
  MemoryResult<void> fill(GuestAddress address, std::uint64_t length, std::byte value);

  // One object, copied whole. Not atomic.
  template <typename T>
  requires std::is_trivially_copyable_v<T> MemoryResult<T> read_object(GuestAddress address)
  const {
    T value;
    auto done = read(address, std::as_writable_bytes(std::span(&value, 1)));
    if (!done) {
      return tl::make_unexpected(done.error());
    }
    return value;
  }
  template <typename T>
  requires std::is_trivially_copyable_v<T> MemoryResult<void> write_object(GuestAddress address,
                                                                           const T& value) {
    return write(address, std::as_bytes(std::span(&value, 1)));
  }

  // A naturally aligned little-endian integer of 1, 2, 4 or 8 bytes, in one access with acquire or release
  // order (for ring indices). A misaligned address is a fault.
  template <typename T>
  MemoryResult<T> load_acquire(GuestAddress address) const;
  template <typename T>
  MemoryResult<void> store_release(GuestAddress address, T value);

  // A checked stretch for a system call or a copy. `length` 0 is a fault.
  MemoryResult<GuestSlice> slice(GuestAddress address, std::uint64_t length) const;

  // Reads `length` bytes of `fd` from `file_offset` on straight into guest RAM, without a copy of our own. A
  // file that ends before that is kInvalidImage; `role` names the file in errors.
  Result<void> load_file(GuestAddress address, const UniqueFd& fd, std::uint64_t file_offset,
                         std::uint64_t length, std::string_view role);

 private:
  // Left to the implementation.
  std::vector<MemoryRegion> regions_;
  UniqueFd backing_;
};

}  // namespace mayfly
