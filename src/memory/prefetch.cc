#include "memory/prefetch.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <utility>

#include "base/check.h"
#include "base/log.h"

// linux/mman.h, since Linux 5.14.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace mayfly {
namespace {

// readahead(2) reads no more of one call than the disk's own read-ahead or its largest request, of which
// 128 KiB is the default. Bounds what a stop waits for, as well.
constexpr std::uint64_t kPiecePages = 32;
// A gap of so many pages costs less than another request.
constexpr std::uint64_t kGapPages = 4;
// How far the reads run ahead of the page tables: what is queued with a disk, 4 MiB. More keeps the guest
// waiting for the first pages of the page tables.
constexpr std::uint64_t kAheadPages = 1024;

constexpr std::uint64_t kBlockPages = 512;  // of a huge page
constexpr std::uint64_t kBlock = kBlockPages * kGuestPage;
// A page's fault costs an eighth of what a huge page takes to be read, cleared and mapped, or more.
constexpr std::uint64_t kDensePages = kBlockPages / 8;

struct Piece {
  std::uint64_t page;  // of the memory file
  std::uint64_t count;
  // Of those that reach into it: they ascend, and do not overlap.
  std::size_t first_run;
  std::size_t end_run;
};

std::uint64_t end_of(const PageRun& run) {
  return std::uint64_t{run.page} + run.count;
}

bool is_own(const OwnBlocks& own, std::uint64_t page) {
  return page / kBlockPages < own.size() && own[page / kBlockPages];
}

// Of no more pages than a block has.
bool is_own(const OwnBlocks& own, const Piece& piece) {
  return is_own(own, piece.page) && is_own(own, piece.page + piece.count - 1);
}

bool is_own(const OwnBlocks& own, const PageRun& run) {
  for (std::uint64_t page = run.page; page < end_of(run); page = (page / kBlockPages + 1) * kBlockPages) {
    if (!is_own(own, page)) {
      return false;
    }
  }
  return true;
}

// Walks what of a set is not the guest's own in pieces.
class Cursor {
 public:
  Cursor(const WorkingSet& set, const OwnBlocks& own) : set_(set), own_(own) {}

  // Of no pages at the end.
  Piece next() {
    if (at_ == end_) {
      join_runs();
    }
    const Piece piece = {at_, std::min(kPiecePages, end_ - at_), first_, index_};
    at_ += piece.count;
    while (first_ < index_ && end_of(set_[first_]) <= at_) {
      ++first_;
    }
    return piece;
  }

 private:
  void join_runs() {
    while (index_ < set_.size() && is_own(own_, set_[index_])) {
      ++index_;
    }
    if (index_ == set_.size()) {
      return;
    }
    first_ = index_;
    const PageRun first = set_[index_++];
    at_ = first.page;
    end_ = end_of(first);
    for (; index_ < set_.size(); ++index_) {
      const PageRun run = set_[index_];
      if (run.page < end_ || run.page - end_ > kGapPages || is_own(own_, run)) {
        return;
      }
      end_ = end_of(run);
    }
  }

  const WorkingSet& set_;
  const OwnBlocks& own_;
  std::size_t index_ = 0;  // of the next run
  std::size_t first_ = 0;  // of the joined run: the first that is not all behind `at_`
  std::uint64_t at_ = 0;   // of the joined run: pages
  std::uint64_t end_ = 0;
};

Result<void> ask_for(const UniqueFd& file, const Piece& piece) {
  if (::readahead(file.get(), static_cast<off64_t>(piece.page * kGuestPage), piece.count * kGuestPage) != 0) {
    return fail_errno(errno, "read guest memory's own file ahead");
  }
  return {};
}

// Fills the page tables for some pages of the memory file. False where this kernel cannot.
Result<bool> populate(const GuestMemory& memory, std::uint64_t page, std::uint64_t end_page, int advice) {
  const std::uint64_t begin = page * kGuestPage;
  const std::uint64_t end = end_page * kGuestPage;
  for (const MemoryRegion& region : memory.regions()) {
    const std::uint64_t from = std::max(begin, region.backing_offset);
    const std::uint64_t to = std::min(end, region.backing_offset + region.range.size());
    if (from >= to) {
      continue;
    }
    std::byte* const host = static_cast<std::byte*>(region.host) + (from - region.backing_offset);
    while (::madvise(host, to - from, advice) != 0) {
      if (errno == EINVAL) {
        return false;
      }
      if (errno != EINTR && errno != EAGAIN) {
        return fail_errno(errno, "map guest memory's own file ahead");
      }
    }
  }
  return true;
}

// The written pages first: those that were mapped for reading would have to be taken out again. Nothing
// where this kernel cannot, or how many of the pages are the guest's own now.
Result<std::optional<std::uint64_t>> map(const GuestMemory& memory, const WorkingSet& set,
                                         const Piece& piece) {
  const std::uint64_t end = piece.page + piece.count;
  std::uint64_t own = 0;
  for (std::size_t index = piece.first_run; index < piece.end_run && set[index].page < end; ++index) {
    const PageRun run = set[index];
    if (!run.written) {
      continue;
    }
    const std::uint64_t from = std::max<std::uint64_t>(run.page, piece.page);
    const std::uint64_t to = std::min(end_of(run), end);
    MAYFLY_TRY_ASSIGN(const bool can, populate(memory, from, to, MADV_POPULATE_WRITE));
    if (!can) {
      return std::nullopt;
    }
    own += to - from;
  }
  if (own == piece.count) {
    return own;
  }
  MAYFLY_TRY_ASSIGN(const bool can, populate(memory, piece.page, end, MADV_POPULATE_READ));
  return can ? std::optional(own) : std::nullopt;
}

Result<void> expect_file(const GuestMemory& memory) {
  if (memory.backing() != Backing::kPrivateFile) {
    return fail(ErrorCode::kUnsupported,
                "a working set is read ahead for private memory files alone, not for " +
                    std::string(to_string(memory.backing())));
  }
  return {};
}

}  // namespace

Result<OwnBlocks> take_own(GuestMemory& memory, const WorkingSet& set, std::size_t most_stretches) {
  MAYFLY_TRY(expect_file(memory));
  const std::uint64_t blocks = memory.size() / kBlock;
  std::vector<std::uint64_t> pages(blocks);  // of the set, in each
  for (std::size_t index = 0; index < set.size(); ++index) {
    const PageRun run = set[index];
    for (std::uint64_t page = run.page; page < end_of(run) && page / kBlockPages < blocks;) {
      const std::uint64_t next = std::min(end_of(run), (page / kBlockPages + 1) * kBlockPages);
      pages[page / kBlockPages] += next - page;
      page = next;
    }
  }
  OwnBlocks own(blocks);
  std::size_t stretches = 0;
  for (const MemoryRegion& region : memory.regions()) {
    if (region.range.base().value() % kBlock != region.backing_offset % kBlock) {
      continue;
    }
    const std::uint64_t end = (region.backing_offset + region.range.size()) / kBlock;
    for (std::uint64_t block = (region.backing_offset + kBlock - 1) / kBlock; block < end; ++block) {
      const std::uint64_t first = block;
      while (block < end && pages[block] >= kDensePages) {
        own[block++] = true;
      }
      if (block > first) {
        MAYFLY_TRY(memory.take_own(first * kBlock, (block - first) * kBlock));
        if (++stretches == most_stretches) {
          return own;
        }
      }
    }
  }
  return own;
}

Result<std::unique_ptr<Prefetcher>> Prefetcher::start(const GuestMemory& memory, WorkingSet set,
                                                      std::function<Result<void>()> confine, OwnBlocks own) {
  MAYFLY_TRY(expect_file(memory));
  std::unique_ptr<Prefetcher> prefetcher(new Prefetcher(memory, std::move(set), std::move(own)));
  const auto told = [self = prefetcher.get(), confine = std::move(confine)] {
    auto confined = confine ? confine() : Result<void>();
    if (!confined) {
      self->end(confined);
    }
    return confined;
  };
  MAYFLY_TRY(prefetcher->thread_.start("mayfly_prefetch", told,
                                       [self = prefetcher.get()] { self->end(self->sweep()); }));
  return prefetcher;
}

Prefetcher::Prefetcher(const GuestMemory& memory, WorkingSet set, OwnBlocks own)
    : memory_(memory), set_(std::move(set)), own_blocks_(std::move(own)), wanted_(set_.pages()) {
  for (std::size_t index = 0; index < set_.size() && !own_blocks_.empty(); ++index) {
    const PageRun run = set_[index];
    for (std::uint64_t page = run.page; page < end_of(run);) {
      const std::uint64_t next = std::min(end_of(run), (page / kBlockPages + 1) * kBlockPages);
      wanted_ -= is_own(own_blocks_, page) ? next - page : 0;
      page = next;
    }
  }
}

void Prefetcher::end(Result<void> done) {
  if (!done) {
    LOG_WARN("the working set is not read ahead to its end: %s", done.error().message().c_str());
  }
  const MutexLock lock(mutex_);
  ended_ = true;
  if (!done) {
    failed_ = std::move(done.error());
  }
  changed_.notify_all();
}

Result<void> Prefetcher::sweep() {
  Cursor reads(set_, own_blocks_);
  Cursor maps(set_, own_blocks_);
  bool can_map = true;
  std::uint64_t ahead = 0;  // pages asked for, and not mapped yet
  for (bool more = true; (more || ahead > 0) && !thread_.stopping();) {
    if (more && (ahead < kAheadPages || !can_map)) {
      const Piece piece = reads.next();
      more = piece.count > 0;
      if (more && !is_own(own_blocks_, piece)) {
        MAYFLY_TRY(ask_for(memory_.backing_file(), piece));
        asked_ += piece.count;
      }
      ahead += piece.count;
      continue;
    }
    if (!can_map) {
      return {};
    }
    const Piece piece = maps.next();
    MAYFLY_CHECK(piece.count > 0, "both sweeps have the same pieces");
    ahead -= piece.count;
    if (is_own(own_blocks_, piece)) {
      continue;
    }
    MAYFLY_TRY_ASSIGN(const auto own, map(memory_, set_, piece));
    can_map = own.has_value();
    mapped_ += can_map ? piece.count : 0;
    own_ += own.value_or(0);
  }
  return {};
}

Prefetcher::Progress Prefetcher::progress() const {
  Progress progress;
  progress.asked_pages = asked_;
  progress.mapped_pages = mapped_;
  progress.own_pages = own_;
  progress.wanted_pages = wanted_;
  const MutexLock lock(mutex_);
  progress.ended = ended_;
  progress.failed = failed_;
  return progress;
}

Prefetcher::Progress Prefetcher::wait_ended() {
  {
    const MutexLock lock(mutex_);
    while (!ended_) {
      changed_.wait(mutex_);
    }
  }
  return progress();
}

}  // namespace mayfly
