// The pages of a memory file that a guest touches after a restore, in about the order in which it does, and
// the file that keeps them for later restores.
//
// WorkingSetRecorder makes one, Prefetcher reads it. The file, all numbers little-endian, without gaps:
//
//   offset  bytes
//        0      8  magic: 89 4d 46 57 53 0d 0a 1a
//        8      4  version: 2; 1 is read as well
//       12      4  number of runs, n: at most kMaxWorkingSetRuns
//       16      8  size of the memory file, in bytes
//       24      8  identity of the snapshot, as the writer knows it
//       32    8 n  runs, first touched first: page (4 bytes), count (4 bytes); the highest bit of the count
//                  is not of it, and says that the pages were written to. Version 1 knows no such bit
//   32 + 8n      8  checksum (base/crc64.h) of all before it
//
// Pages are those of the memory file, of 4 KiB. A run is not empty, and ends within the file; all runs
// together are no more pages than the file has. What a wrong set does is to read the wrong pages ahead, and
// to give the guest pages of its own where it would have needed none: its memory is what the memory file
// says, whatever is said here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/result.h"
#include "memory/memory_file.h"

namespace mayfly {

// 8 MiB of file; 4 GiB of memory where no two pages touch each other.
inline constexpr std::uint32_t kMaxWorkingSetRuns = 1U << 20;

struct PageRun {
  std::uint32_t page = 0;   // of the memory file; 4 KiB each, so that 16 TiB of it can be named
  std::uint32_t count = 0;  // pages
  bool written = false;     // to all of them, by the guest or for it

  friend bool operator==(const PageRun&, const PageRun&) = default;
};

// Of which memory file a set is.
struct WorkingSetOwner {
  std::uint64_t memory_size = 0;  // bytes of the memory file
  // By what the caller tells one snapshot from another of that size, such as the checksum of the file that
  // describes it. 0, or anything else that is the same at writing and at reading: sizes alone are compared.
  std::uint64_t snapshot = 0;

  friend bool operator==(const WorkingSetOwner&, const WorkingSetOwner&) = default;
};

// Writes `runs` into `file`, which is empty (an AtomicFile's, which the caller then commits). Errors:
// kInvalidArgument for runs that no reader would take, and what the host says.
Result<void> write_working_set(const NamedFile& file, const WorkingSetOwner& owner,
                               std::span<const PageRun> runs);

// A working set in the bytes of its file, checked. Move-only; thread-safe.
class WorkingSet {
 public:
  // Reads `file` and checks every byte, which of the largest takes some 20 ms. Errors: kInvalidImage for what
  // is no working set, is damaged, or is that of another memory file or snapshot than `owner`; kUnsupported
  // for another version; kIo.
  static Result<WorkingSet> read(const NamedFile& file, const WorkingSetOwner& owner);

  std::size_t size() const { return runs_.size() / kRunSize; }  // runs
  PageRun operator[](std::size_t index) const;
  std::uint64_t pages() const { return pages_; }  // of all runs

 private:
  static constexpr std::size_t kRunSize = 8;

  // NOLINTNEXTLINE(modernize-avoid-c-arrays): a vector would write zeros to all of it
  using Bytes = std::byte[];

  WorkingSet(std::unique_ptr<Bytes> bytes, std::span<const std::byte> runs, std::uint32_t written)
      : bytes_(std::move(bytes)), runs_(runs), written_(written) {}

  std::unique_ptr<Bytes> bytes_;
  std::span<const std::byte> runs_;  // in bytes_
  std::uint32_t written_ = 0;        // the bit of a count that says so; none in version 1
  std::uint64_t pages_ = 0;
};

}  // namespace mayfly
