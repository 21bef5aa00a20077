// A dirty log of all that is written to guest RAM, by whomever.
//
// KVM's own log has what vCPUs write, and nothing of what the monitor and its system calls do: a diff made of
// it alone would miss what devices brought to the guest. This log comes from the page tables (userfaultfd's
// asynchronous write protection, Linux 6.7; Documentation/admin-guide/mm/pagemap.rst) and has both. The first
// write to a page after each look costs a fault that the kernel settles by itself.
//
// It does not have: pages given back to the host by madvise(2), which are zeros then; and a transfer into
// pages that were pinned before a look and that ends after it (O_DIRECT, registered buffers): let those end
// before each look.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/page_extents.h"
#include "memory/precopy.h"

namespace mayfly {

class WriteTracker final : public DirtyPageSource {
 public:
  // From here on, and as long as the tracker lives, writes to `memory` are seen. Needs no privilege. Borrows
  // both, and only one can be had of a memory that nothing else watches by a userfaultfd. Errors:
  // kUnsupported for a kernel without, and for memory that others can map, whose pages the tables of this
  // process do not tell: memfds and their huge pages.
  static Result<WriteTracker> start(const GuestMemory& memory, const PageMap& pages);

  // Pages that were there at the start and were not written are not among them; those of a region that
  // appeared since are. Errors: kOutOfRange for a region that is none.
  Result<std::vector<std::uint64_t>> take_dirty_pages(std::size_t region) override;

 private:
  WriteTracker(UniqueFd fd, const PageMap& pages, std::span<const MemoryRegion> regions)
      : fd_(std::move(fd)), pages_(&pages), regions_(regions.begin(), regions.end()) {}

  UniqueFd fd_;  // its end is that of the protection
  const PageMap* pages_;
  std::vector<MemoryRegion> regions_;
};

}  // namespace mayfly
