// Writing RAM while its guest runs, so that the guest stands still for the last pages only.
//
//   start the dirty log; write_full() with the guest running; precopy(); stop the guest; finish_precopy();
//   take what else is to be saved; resume; AtomicFile::commit().
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "memory/memory_file.h"
#include "memory/page_extents.h"

namespace mayfly {

// A dirty log: what vCPUs wrote and what the monitor itself did.
class DirtyPageSource {
 public:
  virtual ~DirtyPageSource() = default;

  // The pages of the region with that index which were written since the last call, and forgets them. Called
  // from the thread that writes.
  virtual Result<std::vector<std::uint64_t>> take_dirty_pages(std::size_t region) = 0;
};

// Remembers what is taken from a log, until a snapshot stands: a log that was taken for one that then fails
// (a full disk) has forgotten those pages, and the next diff must have them. All takers go through it.
class DirtyLedger final : public DirtyPageSource {
 public:
  // Borrows both.
  DirtyLedger(const GuestMemory& memory, DirtyPageSource& log) : log_(log), since_(no_pages(memory)) {}

  Result<std::vector<std::uint64_t>> take_dirty_pages(std::size_t region) override;
  // All that was taken since the start or the last settle(): what a diff consists of.
  const PageSet& since_last() const { return since_; }
  // A snapshot stands that has them.
  void settle();

 private:
  DirtyPageSource& log_;
  PageSet since_;
};

// When to stop writing rounds: at so few pages that the guest may wait for them, and after so many rounds
// anyway, as a guest may write faster than any disk.
struct PrecopyRule {
  std::uint64_t enough_pages = 1024;  // 4 MiB, one to two milliseconds
  unsigned most_rounds = 8;
};

struct PrecopyOutcome {
  PageSet remaining;                  // taken from the log, and still to be written
  std::vector<std::uint64_t> rounds;  // pages written in each
  bool converged = false;             // no more remain than were enough
};

// All pages that are dirty now.
Result<PageSet> take_dirty_pages(const GuestMemory& memory, DirtyPageSource& log);

// Writes rounds of dirty pages over `file`, which holds all of RAM as of when the log began, until the rule
// says stop. The guest runs.
Result<PrecopyOutcome> precopy(const GuestMemory& memory, DirtyPageSource& log, const NamedFile& file,
                               const PrecopyRule& rule, const MemoryFileOptions& options);

// What remained and what became dirty since. The guest stands still; then the file is its RAM.
Result<WrittenMemory> finish_precopy(const GuestMemory& memory, DirtyPageSource& log,
                                     const PrecopyOutcome& outcome, const NamedFile& file,
                                     const MemoryFileOptions& options);

}  // namespace mayfly
