#include "memory/precopy.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace mayfly {

Result<std::vector<std::uint64_t>> DirtyLedger::take_dirty_pages(std::size_t region) {
  MAYFLY_CHECK(region < since_.size(), "a region of the memory that the ledger is of");
  MAYFLY_TRY_ASSIGN(std::vector<std::uint64_t> taken, log_.take_dirty_pages(region));
  auto& since = since_[region];
  if (taken.size() != since.size()) {
    return fail(ErrorCode::kInternal, "take dirty pages: a log of other memory");
  }
  std::transform(since.begin(), since.end(), taken.begin(), since.begin(),
                 [](std::uint64_t a, std::uint64_t b) { return a | b; });
  return taken;
}

void DirtyLedger::settle() {
  for (auto& region : since_) {
    std::fill(region.begin(), region.end(), 0);
  }
}

Result<PageSet> take_dirty_pages(const GuestMemory& memory, DirtyPageSource& log) {
  PageSet dirty = no_pages(memory);
  for (std::size_t region = 0; region < dirty.size(); ++region) {
    MAYFLY_TRY_ASSIGN(auto taken, log.take_dirty_pages(region));
    if (taken.size() != dirty[region].size()) {
      return fail(ErrorCode::kInternal, "take dirty pages: a log of other memory");
    }
    dirty[region] = std::move(taken);
  }
  return dirty;
}

Result<PrecopyOutcome> precopy(const GuestMemory& memory, DirtyPageSource& log, const NamedFile& file,
                               const PrecopyRule& rule, const MemoryFileOptions& options) {
  PrecopyOutcome outcome;
  for (;;) {
    MAYFLY_TRY_ASSIGN(outcome.remaining, take_dirty_pages(memory, log));
    const std::uint64_t pages = count_pages(outcome.remaining);
    outcome.converged = pages <= rule.enough_pages;
    if (outcome.converged || outcome.rounds.size() >= rule.most_rounds) {
      return outcome;
    }
    MAYFLY_TRY(write_over(memory, outcome.remaining, file, options));
    outcome.rounds.push_back(pages);
  }
}

Result<WrittenMemory> finish_precopy(const GuestMemory& memory, DirtyPageSource& log,
                                     const PrecopyOutcome& outcome, const NamedFile& file,
                                     const MemoryFileOptions& options) {
  MAYFLY_TRY_ASSIGN(PageSet dirty, take_dirty_pages(memory, log));
  add_pages(dirty, outcome.remaining);
  return write_over(memory, dirty, file, options);
}

}  // namespace mayfly
