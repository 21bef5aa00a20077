// Finds which pages of its memory file a guest touches, and in about which order, for Prefetcher to read them
// ahead of the next one.
//
// A thread looks at this process's page tables every few milliseconds and writes down what has become present
// since. Chosen over a userfaultfd handler of our own, which would know the exact order: that takes a
// privilege (KVM's faults come from within the kernel), makes the guest wait for a thread at every fault,
// and its memory anonymous: nothing is shared with other clones, and find_written_pages() knows nothing. The
// page tables cost the guest nothing, and order matters for no more than what is read in the same few
// milliseconds anyway.
//
// What is to be kept out of the page tables is pages that nobody touched:
// - The kernel maps up to 16 cached pages around each one that is read ("fault-around"). In scattered
//   accesses to a cached file that made 138,185 pages out of 16,384. It does not do so in memory that is
//   registered with a userfaultfd for write protection, which for private files Linux 6.7 allows, without
//   privilege, and which protects nothing as long as nobody asks for it. Before 6.7, or where a userfaultfd
//   is refused, there shall be no neighbours in the cache: those that nobody has mapped are dropped from it
//   (posix_fadvise), and none are read with a page (MADV_RANDOM, which stays), so that the guest waits for
//   the disk more often. Where other guests have the file mapped, the set has neighbours: exact() says so,
//   and reading it ahead reads at most 64 KiB for a page.
// - A huge page in the page cache is mapped as one, which shows 512 pages, and a write to it takes all of
//   them away again. So the memory is told to have no huge pages (MADV_NOHUGEPAGE, which stays): pages of a
//   private file that are written are small ones with or without it.
//
// At the end the page tables tell as well which of the pages are no longer the file's: those were written.
//
// Not in the set are pages that are holes of the file, which no disk has to bring, and what the kernel took
// away again between two looks. Pages that were touched before start() are in it, and what a Prefetcher
// brought: a guest that is to be recorded is not to be prefetched for.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/result.h"
#include "base/side_thread.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"
#include "memory/page_extents.h"
#include "memory/working_set.h"

namespace mayfly {

class WorkingSetRecorder {
 public:
  struct Recording {
    std::vector<PageRun> runs;  // for write_working_set(); at most `most_runs`, disjoint
    std::uint64_t pages = 0;    // of all runs, 4 KiB each
    bool whole = true;          // not: there was no room for later runs
    bool exact = true;          // as exact()
  };

  // Starts the thread "mayfly_record", which calls `confine` first. Before the guest runs; `memory` and
  // `pages` are borrowed until the end. Takes a bit of memory for each page, and 8 bytes for each run, of
  // which there are `most_runs` at most. Errors: kUnsupported for another backing than kPrivateFile,
  // kExhausted for no thread.
  static Result<std::unique_ptr<WorkingSetRecorder>> start(const GuestMemory& memory, const PageMap& pages,
                                                           std::function<Result<void>()> confine = {},
                                                           std::size_t most_runs = kMaxWorkingSetRuns);
  WorkingSetRecorder(const WorkingSetRecorder&) = delete;
  WorkingSetRecorder& operator=(const WorkingSetRecorder&) = delete;
  ~WorkingSetRecorder() = default;  // stops the thread

  // The error of `confine`, where it has one; then nothing is recorded.
  Result<void> wait_confined() { return thread_.wait_confined(); }

  // Whether only pages that were touched are recorded, and not their neighbours as well.
  bool exact() const { return exact_; }
  // How many pages of 4 KiB were seen until now. Thread-safe.
  std::uint64_t pages() const { return seen_pages_; }

  // Looks once more, ends the thread, and answers what was found; called again, the same. Waits for one look,
  // a few milliseconds for a GiB of touched memory. Errors: that of `confine`, and those of the host's.
  Result<Recording> finish();

 private:
  WorkingSetRecorder(const GuestMemory& memory, const PageMap& pages, std::size_t most_runs);

  void keep_neighbours_out();
  bool watch_memory();
  void main() noexcept;
  Result<void> look();
  void add(std::uint64_t page, std::uint64_t count);
  Result<std::vector<bool>> find_data() const;
  Result<std::vector<bool>> find_written() const;

  const GuestMemory& memory_;
  const PageMap& page_map_;
  UniqueFd watch_;  // the userfaultfd; its end is that of the registration
  bool exact_ = false;
  const std::size_t most_runs_;
  std::atomic<std::uint64_t> seen_pages_ = 0;

  // The thread's, until it has ended.
  std::vector<bool> seen_;  // pages of the memory file
  std::vector<PageRun> runs_;
  bool whole_ = true;
  Result<void> looked_;

  SideThread thread_;  // last: all above is there before it starts
};

}  // namespace mayfly
