// The only door to guest RAM.
//
// A guest's vCPUs change its memory at any time, so nothing here hands out a reference, a pointer or a
// std::span into it: values are copied in and out, and a GuestSlice names a checked stretch for a system call
// or a copy. Every access is checked against the ranges at the time of the access. Thread-safe: the ranges
// never change after create(). Two copies, or a copy and a vCPU, that meet on the same bytes may tear: each
// byte comes from the one or the other; what GuestSlice loads and stores does not tear.
//
// No access touches a page that it does not cover, so untouched guest pages cost nothing. An access whose
// page the host cannot provide (it is out of memory) ends the process by a signal; there is nothing a guest
// could do to bring that about.
#pragma once

#include <sys/uio.h>

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/check.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_address.h"
#include "memory/write_record.h"

namespace mayfly {

// An access that was refused: outside guest RAM, or across the end of one of its ranges, or of no bytes where
// that means nothing. Trivially copied, so that a hot path that refuses a hostile address allocates
// nothing; to_error() (always kOutOfRange) words it where a person will read it.
struct MemoryFault {
  GuestAddress address;
  std::uint64_t length = 0;  // bytes

  Error to_error() const;
};

template <typename T>
using MemoryResult = tl::expected<T, MemoryFault>;

// What stands behind guest RAM.
enum class Backing : std::uint8_t {
  // Private anonymous pages; untouched ones cost nothing. The default; huge_pages "None". The host's own
  // policy for transparent huge pages (/sys/kernel/mm/transparent_hugepage/enabled) applies.
  kAnonymous,
  // As above, with MADV_HUGEPAGE: huge pages unless the host's policy is "never". huge_pages "Transparent".
  kTransparentHuge,
  // A memfd mapped shared, so that another process can map it too. Sealed: its size cannot change, so no
  // other holder of the descriptor can take pages away under us.
  kMemfd,
  // A memfd of 2 MiB huge pages, sealed likewise. huge_pages "2M". Bases and sizes must be multiples of
  // 2 MiB. The pages are reserved in the host's pool by create(), so that a pool that is too small is an
  // error there and not a SIGBUS later (a hugetlb cgroup limit or a cpuset that has no such pages can still
  // bring that about).
  kHugetlb2M,
  // A memory file mapped private: pages come from the host's page cache when they are touched, and all
  // microVMs of one file share them; those that are written become this one's own. Made by map_file() alone.
  kPrivateFile,
};

// The name of a backing, for messages: "anonymous", "transparent huge pages", "memfd", "2 MiB huge pages",
// "private memory file".
std::string_view to_string(Backing backing);

// A type that a GuestSlice loads and stores in one access.
template <typename T>
concept GuestInteger = std::integral<T> && !std::same_as<T, bool> && sizeof(T) <= 8;

// A contiguous, checked stretch of guest RAM: for copies and as an iovec for system calls. Valid as long as
// the GuestMemory it came from, or the one that this was moved to. What it covers may change under every
// look: copy first, then check, then use.
//
// What is written through a slice, or by a system call, is not noted by itself: whoever does it calls
// GuestMemory::note_written() afterwards.
class GuestSlice {
 public:
  std::size_t size() const { return size_; }  // bytes
  GuestAddress address() const { return address_; }

  // Copies to or from the start of the slice. A span that is longer than the slice is a bug of ours: aborts.
  void copy_to(std::span<std::byte> destination) const;
  void copy_from(std::span<const std::byte> source) const;
  void fill(std::byte value) const;

  // `length` bytes from `offset` on, which must lie in the slice, else: aborts. Of no bytes at the end is a
  // part too.
  GuestSlice part(std::size_t offset, std::size_t length) const {
    MAYFLY_CHECK(offset <= size_ && length <= size_ - offset, "a part reaches past its slice");
    return {static_cast<std::byte*>(host_) + offset, length, GuestAddress(address_.value() + offset)};
  }

  // One object, copied whole; not atomic. It must lie in the slice, else: aborts.
  template <typename T>
  requires std::is_trivially_copyable_v<T> T object(std::size_t offset)
  const {
    T value;
    part(offset, sizeof(T)).copy_to(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void set_object(std::size_t offset, const T& value) const {
    part(offset, sizeof(T)).copy_from(std::as_bytes(std::span(&value, 1)));
  }

  // A little-endian integer in one access, for what a driver and a device share (ring indices). It must lie
  // in the slice and be naturally aligned in guest memory, else: aborts. The two are sequentially consistent:
  // a store() is visible to the guest before a later load() looks, which is what the notification rules of
  // virtio need (and what orders all other accesses, too).
  template <GuestInteger T>
  T load(std::size_t offset) const {
    // SAFETY: integer_at() checked the bounds and the alignment. An atomic access is no data race with a
    // vCPU's; a T there is never accessed but so or as volatile bytes.
    return __atomic_load_n(static_cast<const volatile T*>(integer_at(offset, sizeof(T))), __ATOMIC_SEQ_CST);
  }
  template <GuestInteger T>
  void store(std::size_t offset, std::type_identity_t<T> value) const {
    // SAFETY: as in load().
    __atomic_store_n(static_cast<volatile T*>(integer_at(offset, sizeof(T))), value, __ATOMIC_SEQ_CST);
  }

  // For readv(2), writev(2) and their kin only: the kernel accesses the bytes, never we through the pointer.
  // (ThreadSanitizer counts such a call as an access of ours; it does not see copies, which are in
  // guest_copy.cc.)
  iovec for_system_call() const { return {host_, size_}; }

 private:
  friend class GuestMemory;
  GuestSlice(void* host, std::size_t size, GuestAddress address)
      : host_(host), size_(size), address_(address) {}

  void* integer_at(std::size_t offset, std::size_t size) const {
    MAYFLY_CHECK((address_.value() + offset) % size == 0, "a guest integer is not aligned");
    return part(offset, size).host_;
  }

  void* host_;
  std::size_t size_;
  GuestAddress address_;
};

// Of all the slices, in bytes.
inline std::uint64_t total_size(std::span<const GuestSlice> slices) {
  std::uint64_t bytes = 0;
  for (const GuestSlice& slice : slices) {
    bytes += slice.size();
  }
  return bytes;
}

// One range of guest RAM as the hypervisor maps it.
struct MemoryRegion {
  GuestRange range;
  void* host;                    // start of the mapping in this process, congruent to the base modulo 2 MiB
  int backing_fd;                // of a memfd, else -1; borrowed from the GuestMemory
  std::uint64_t backing_offset;  // where the range lies in it: bytes of RAM before this range
};

// Owns the mappings and the memfd behind them. Around each mapping at least 2 MiB of address space are kept
// inaccessible. A moved-from GuestMemory has no ranges. Guest RAM is left out of core dumps and is not
// inherited by fork().
class GuestMemory {
 public:
  // Maps RAM for `ranges`: ascending, not overlapping, page-aligned base and size; all bytes read as 0.
  // Errors: kInvalidArgument for ranges that are not so, kExhausted where the host cannot map or reserve that
  // much, kUnsupported where the host has no such huge pages; each says which and what to do about it.
  static Result<GuestMemory> create(std::span<const GuestRange> ranges, Backing backing);

  // The same with RAM whose bytes are those of a memory file (memory_file.h): it holds the ranges one behind
  // the other, and nothing else. `name` names it in errors: kInvalidImage for what is no regular file or has
  // another size, before anything is mapped.
  //
  // The file belongs to the guest from now on: whoever changes it changes RAM that the guest has not written
  // yet, and whoever cuts it short takes even what it has written (mmap(2)). There is no way to keep an owner
  // of a file from that, and copying it would give away what mapping is for, so: AtomicFile replaces a file
  // and never touches the former one; where others may write the file, load it into another backing.
  // What becomes of a file cut short: an access of ours ends the process by SIGBUS, told in the last line of
  // log and by its exit code; a vCPU's ends in an error of KVM_RUN; a system call's in EFAULT.
  static Result<GuestMemory> map_file(std::span<const GuestRange> ranges, UniqueFd file,
                                      std::string_view name);

  GuestMemory(GuestMemory&&) noexcept = default;
  GuestMemory& operator=(GuestMemory&&) noexcept = default;
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;
  ~GuestMemory() = default;

  std::span<const MemoryRegion> regions() const { return regions_; }
  Backing backing() const { return backing_; }
  // The memfd or the memory file; no descriptor for anonymous memory.
  const UniqueFd& backing_file() const { return backing_fd_; }
  std::uint64_t size() const;                    // bytes of RAM in all ranges together
  bool contains(const GuestRange& range) const;  // whole, and within one range

  // Copies. An access must lie in one range whole; one that does not is refused and does nothing. An access
  // of no bytes does nothing and succeeds, whatever its address.
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

  // A checked stretch for a system call or a copy. `length` 0 is a fault.
  MemoryResult<GuestSlice> slice(GuestAddress address, std::uint64_t length) const;

  // Reads `length` bytes of `fd` from `file_offset` on straight into guest RAM, without a copy of our own. A
  // file that ends before that is kInvalidImage, a destination that is not in one range is kOutOfRange;
  // `role` names the file in errors ("kernel image"). After an error any part of the destination may have
  // been written. No bytes: nothing is done, whatever the address.
  Result<void> load_file(GuestAddress address, const UniqueFd& fd, std::uint64_t file_offset,
                         std::uint64_t length, std::string_view role);

  // Of kPrivateFile: reads `length` bytes of the memory file from `offset` on into anonymous memory with
  // MADV_HUGEPAGE, which takes the place of their mapping: a guest's fault brings 2 MiB, not 4 KiB, and the
  // pages are this memory's alone, read past the page cache where that does not have them. What was written
  // there before is lost: before the guest runs. Both are multiples of 2 MiB and `length` is not 0; they lie
  // in one region, whose base and place in the file are congruent modulo 2 MiB: else, and for another
  // backing: aborts. Errors: kExhausted where the host cannot map it, kUnsupported where its kernel has no
  // transparent huge pages, kInvalidImage for a file that was cut short, kIo. After an error the stretch
  // holds anything.
  Result<void> take_own(std::uint64_t offset, std::uint64_t length);

  // The record of the pages that this process writes, for snapshots: KVM logs what vCPUs write and nothing
  // else. Off at first. What write(), fill() and load_file() change is noted by itself; what
  // is written through slices, by note_written(). Not noted: how memory_file.h and userfault.h fill a RAM
  // that is being made.

  // Switches the record; it begins empty. One thread at a time, as take_noted(); others may be writing. What
  // another thread writes at that very moment may go unnoted: of a guest that runs, have every lock under
  // which RAM is written (a device's) once afterwards, before the first page is copied.
  void note_writes(bool on);
  bool notes_writes() const { return record_.is_on(); }
  // These bytes may have been written, before this call: the order is what makes the record right, see
  // WriteRecord. They lie in one range, else: aborts, while the record is on. While it is off, this is a load
  // and a branch. Any thread.
  void note_written(GuestAddress address, std::uint64_t length) {
    if (notes_writes()) [[unlikely]] {
      mark_written(address, length);
    }
  }
  // The pages of the region with that index which were noted since the last call, in the format of
  // DirtyPageSource (precopy.h), and forgets them. Errors: kOutOfRange for a region that is none, kNotFound
  // while the record is off.
  Result<std::vector<std::uint64_t>> take_noted(std::size_t region);

 private:
  // A stretch of this process's address space, unmapped when its owner goes. Guest RAM lies in the middle of
  // it.
  class Reservation {
   public:
    Reservation(void* start, std::size_t size) : start_(start), size_(size) {}
    Reservation(Reservation&& other) noexcept;
    Reservation& operator=(Reservation&&) = delete;
    Reservation(const Reservation&) = delete;
    Reservation& operator=(const Reservation&) = delete;
    ~Reservation();

   private:
    void* start_;  // nullptr: nothing is held
    std::size_t size_;
  };

  explicit GuestMemory(Backing backing) : backing_(backing) {}

  Result<void> open_backing(std::uint64_t size);
  Result<void> map_ranges(std::span<const GuestRange> ranges, std::uint64_t total);
  Result<void> map_range(const GuestRange& range, std::uint64_t backing_offset, std::uint64_t total);

  // Where the bytes [address, address + length) lie in this process. `length` must not be 0.
  MemoryResult<void*> locate(GuestAddress address, std::uint64_t length) const;
  void mark_written(GuestAddress address, std::uint64_t length);

  Backing backing_;
  UniqueFd backing_fd_;
  std::vector<Reservation> reservations_;
  std::vector<MemoryRegion> regions_;  // ascending
  WriteRecord record_;
};

// Whether `file` can be one of `size` bytes of guest RAM, a regular file of just that size; else
// kInvalidImage with `name` and what it is instead.
Result<void> check_memory_file(const UniqueFd& file, std::uint64_t size, std::string_view name);

static_assert(std::endian::native == std::endian::little, "guest integers are little-endian and not swapped");

}  // namespace mayfly
