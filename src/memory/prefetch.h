// Reads a working set ahead of the guest that will touch it.
//
// Chosen by figures (bench/working_set, cold page cache, 64 MiB touched out of 1 GiB, medians of the time
// until the guest has touched all):
//
//   1,290 ms  by the guest's own faults; 1,500 where the kernel reads single pages
//     200 ms  asking for the runs by readahead(2), which queues many with the disk at once, in the order of
//             recording: where the guest is never ahead of the sweep, it starts no reading of its own
//     234 ms  the same in the order of the file
//   1,000 ms  reading them by pread(2), or by faulting them in: what costs is to wait for one after the other
//     140 ms  a compact copy of the pages, read in one piece and put into anonymous memory
//
// The last one is not for us: it would be 64 MiB of each clone's own, which now share them; the guest could
// not begin before all is in its place, as nothing can be put under a guest that runs; and what it saves is a
// disk's share that solid state disks hardly charge. Runs that follow each other with small gaps are read as
// one.
//
// Behind the reads goes a second sweep, which has the kernel fill the page tables with what has arrived
// (MADV_POPULATE_READ, Linux 5.14), so that the guest does not even take a minor fault for what it reads. The
// pages stay those of the page cache, shared by all guests of the file. Not so those that the recorded guest
// wrote: they become copies of this guest's own ahead of its writing (MADV_POPULATE_WRITE), where it would
// have made KVM map each of them twice, for the read or the first look and again for the copy. It is as much
// private memory as the recorded guest took.
//
// No sweep can harm the guest: no byte of its memory becomes another. What fails ends the sweep, and is
// told.
//
// What a sweep leaves is KVM's own fault for each page. take_own() is for those who would rather pay with
// memory: what the set is dense in becomes huge pages of the guest's own before it runs, one fault for 2 MiB,
// which no other guest of the file shares. The sweep then has the rest.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "base/side_thread.h"
#include "memory/guest_memory.h"
#include "memory/memory_file.h"
#include "memory/working_set.h"

namespace mayfly {

// Of a memory file, a flag for each 2 MiB of it: whether they are huge pages of the guest's own.
using OwnBlocks = std::vector<bool>;

// Of a memory, that take_own() takes: each is two mappings more, of which a process has 65,530
// (vm.max_map_count).
inline constexpr std::size_t kMostStretches = 16384;

// Takes for `memory`'s own (GuestMemory::take_own()) what lies within one region, as whole huge pages of the
// guest's, and of which `set` has one page in eight or more: where it has fewer, reading 2 MiB costs more
// than the faults do. In at most `most_stretches` (1 or more) stretches without a gap: of a file with more,
// the last are left to a sweep. Reads them in the order of the file, and waits for it. Before the guest runs,
// and before its memory is written. `set` is one of this memory. Errors: kUnsupported for another backing
// than kPrivateFile, and those of GuestMemory::take_own(), after which `memory` is of no use.
Result<OwnBlocks> take_own(GuestMemory& memory, const WorkingSet& set,
                           std::size_t most_stretches = kMostStretches);

class Prefetcher {
 public:
  struct Progress {
    bool ended = false;              // nothing more will happen
    std::uint64_t wanted_pages = 0;  // of the set, 4 KiB each, without those that are the guest's own
    std::uint64_t asked_pages = 0;   // of the memory file, asked for; small gaps between runs are among them
    std::uint64_t mapped_pages = 0;  // of them, put into the page tables; 0 before Linux 5.14
    std::uint64_t own_pages = 0;     // of those, copied for this guest alone
    std::optional<Error> failed;     // why it ended before all was read; not where it was stopped
  };

  // Starts the thread "mayfly_prefetch", which calls `confine` and sweeps what of `set`, one of this memory,
  // is not in `own` (take_own()'s; empty: nothing is); where that fails, it says so in the log as well.
  // Before the guest runs. `memory` is borrowed: it lives longer. Errors: kUnsupported for another backing
  // than kPrivateFile, kExhausted for no thread.
  static Result<std::unique_ptr<Prefetcher>> start(const GuestMemory& memory, WorkingSet set,
                                                   std::function<Result<void>()> confine = {},
                                                   OwnBlocks own = {});
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;
  ~Prefetcher() = default;  // stop()

  // The error of `confine`, where it has one; then nothing is read.
  Result<void> wait_confined() { return thread_.wait_confined(); }

  // Never blocks. The thread ends after the piece that it is at: up to 128 KiB, for which it may wait for the
  // disk behind what is queued already.
  void request_stop() { thread_.request_stop(); }
  // Waits for it.
  void stop() { thread_.stop(); }

  // Thread-safe, at any time.
  Progress progress() const MAYFLY_EXCLUDES(mutex_);
  // Waits until it has ended, which without request_stop() is when all was read.
  Progress wait_ended() MAYFLY_EXCLUDES(mutex_);

 private:
  Prefetcher(const GuestMemory& memory, WorkingSet set, OwnBlocks own);

  void end(Result<void> done) MAYFLY_EXCLUDES(mutex_);
  Result<void> sweep() MAYFLY_EXCLUDES(mutex_);

  const GuestMemory& memory_;
  const WorkingSet set_;
  const OwnBlocks own_blocks_;
  std::uint64_t wanted_ = 0;  // pages

  std::atomic<std::uint64_t> asked_ = 0;   // pages
  std::atomic<std::uint64_t> mapped_ = 0;  // pages
  std::atomic<std::uint64_t> own_ = 0;     // pages
  mutable Mutex mutex_;                    // a leaf
  CondVar changed_;                        // ended_
  bool ended_ MAYFLY_GUARDED_BY(mutex_) = false;
  std::optional<Error> failed_ MAYFLY_GUARDED_BY(mutex_);

  SideThread thread_;  // last: all above is there before it starts
};

}  // namespace mayfly
