// Files of guest RAM.
//
// Byte n of a memory file is byte n of the guest's RAM, its regions one behind the other in the order of
// their addresses, without what lies between them; the file is exactly as long as RAM. It holds nothing else:
// what it is of, the description beside it says. A hole is zeros.
//
// A diff is a file of the same shape in which only the pages that were written since the file before it are
// there, zeros among them; its holes mean "as before". It takes a file system that keeps holes page by page,
// which is looked at when one is written. A copy may fill holes, or make some of zeros: DiffPages tells.
//
// KVM's dirty log has what vCPUs wrote, and nothing of what devices did, which GuestMemory notes;
// find_written_pages() has both.
//
// Nothing here opens, names or syncs files: the caller does, by AtomicFile, or outside of a jail.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"
#include "memory/page_extents.h"

namespace mayfly {

// An open file, with what errors call it ("snapshot memory file /p").
struct NamedFile {
  const UniqueFd& fd;
  std::string_view name;
};

struct MemoryFileOptions {
  // Finds what was never touched. Null: see for_each_extent().
  const PageMap* pages = nullptr;
  // A userfaultfd handler serves the memory: all of it is read, so that the handler brings what is missing.
  bool served_by_handler = false;
  // Asked at the start and every 1 to 5 MiB, with the bytes of RAM that are done and how many there are:
  // whether to go on. Where not, the writing ends with kBusy.
  std::function<bool(std::uint64_t done, std::uint64_t total)> proceed{};
};

// What became of the pages that a call was about, in bytes.
struct WrittenMemory {
  std::uint64_t written = 0;
  std::uint64_t zero = 0;       // seen to be zeros: holes
  std::uint64_t untouched = 0;  // known to be zeros: holes
};

// Which pages of a file are there: how many, and a CRC-64 of where they are, each run's first page and its
// number of pages, both u64 little-endian.
struct DiffPages {
  std::uint64_t count = 0;
  std::uint64_t checksum = 0;
  bool operator==(const DiffPages&) const = default;
};

// Of a file whose size is of whole pages. Errors of the host's, with the file's name; kInvalidImage for what
// is no regular file.
Result<DiffPages> find_diff_pages(const NamedFile& file);

// All of RAM into an empty file. Untouched pages cost next to nothing and stay so, pages of zeros become
// holes, and the rest is written from where it lies in pieces of up to 4 MiB. A page that the guest writes
// meanwhile comes out torn, and is in the dirty log.
// Errors, here and below: kInvalidArgument for a file that is not as the call wants it or a set that is of
// other memory; of the host's, with the file's name: a full disk kExhausted, a limit or a bad disk kIo; and
// kInvalidImage for a file to read that was cut short. After an error the written file is of no use.
Result<WrittenMemory> write_full(const GuestMemory& memory, const NamedFile& file,
                                 const MemoryFileOptions& options);

// The pages of `dirty` into a file that holds all of RAM as it was before, or in part; pages of zeros become
// holes.
Result<WrittenMemory> write_over(const GuestMemory& memory, const PageSet& dirty, const NamedFile& file,
                                 const MemoryFileOptions& options);

// The pages of `dirty` as a diff, into an empty file. Error kUnsupported where the file system does not keep
// what is a hole and what is zeros apart, page by page.
Result<WrittenMemory> write_diff(const GuestMemory& memory, const PageSet& dirty, const NamedFile& file,
                                 const MemoryFileOptions& options);

// `from` to `to`, an empty file: by sharing its blocks where the file system can (FICLONE), else what is not
// a hole, 1 MiB at a time. To write over the copy: a base stays as it is until another has its name.
Result<void> copy_memory_file(const NamedFile& from, const NamedFile& to, const MemoryFileOptions& options);

// What is there in `diff` over the same bytes of `onto`, a memory file or a diff of the same size.
Result<void> apply_diff(const NamedFile& diff, const NamedFile& onto, const MemoryFileOptions& options);

// Guest RAM with the bytes of `file`, a whole memory file open for reading. With kAnonymous the file is
// mapped (kPrivateFile, see GuestMemory::map_file()), with all else it is read: for huge pages, for memory to
// share, and where the file may change. Errors as map_file() and create().
Result<GuestMemory> load_memory_file(std::span<const GuestRange> ranges, Backing backing, UniqueFd file,
                                     std::string_view name);

}  // namespace mayfly
