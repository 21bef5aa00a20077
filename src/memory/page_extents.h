// Where guest RAM holds something, found without touching it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"

namespace mayfly {

// For each region of a guest's RAM, in their order, one bit a 4 KiB page, lowest first: as KVM_GET_DIRTY_LOG
// gives them. Bits past the end of a region mean nothing.
using PageSet = std::vector<std::vector<std::uint64_t>>;

// A set that holds no page of `memory`.
PageSet no_pages(const GuestMemory& memory);
std::uint64_t count_pages(const PageSet& pages);
// The pages of `more` as well. Both are of the same memory.
void add_pages(PageSet& pages, const PageSet& more);

// This process's page tables, as /proc/self/pagemap shows them. A jail has no /proc: there it cannot be
// opened; looking needs no privilege. Thread-safe.
class PageMap {
 public:
  enum class Kind : std::uint8_t {
    kThere,    // mapped, in memory or in swap, and not known to be the kernel's page of zeros
    kPrivate,  // as above, and nobody else's: private memory that was written
  };

  static Result<PageMap> open();

  // Calls `visit(offset, size)`, in bytes from `host` on, for runs of pages of that kind in the `size` bytes
  // there, ascending; its error ends the walk. By PAGEMAP_SCAN, which skips what is not there in one step, or
  // before Linux 6.7 page by page.
  Result<void> for_each_run(const void* host, std::uint64_t size, Kind kind,
                            const std::function<Result<void>(std::uint64_t, std::uint64_t)>& visit) const;

 private:
  explicit PageMap(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
};

// A stretch of a region that may hold other bytes than zeros. What lies between two of them reads as zeros.
struct Extent {
  std::uint64_t offset;  // bytes from the region's start
  std::uint64_t size;    // bytes; both are multiples of 4 KiB
  // Read it from backing_file(), at the region's backing_offset, rather than from the mapping: that would
  // fill the page tables, or take huge pages, for what nobody has touched. The bytes are the same.
  bool in_file;
};

// Calls `visit` for each extent of `region` of `memory`, ascending; its error ends the walk and is handed on.
// Takes from the kernel's books where it can (page tables, holes of files), and else says "all of it".
// `pages` may be null: then mincore(2) tells of anonymous memory and private files, on a host that has no
// swap, and on others they are told to be all there. A guest that runs meanwhile may touch more pages; its
// dirty log has them.
//
// Not for memory that a userfaultfd handler serves: there a page that is not there is not zero.
Result<void> for_each_extent(const GuestMemory& memory, const MemoryRegion& region, const PageMap* pages,
                             const std::function<Result<void>(const Extent&)>& visit);

// Calls `visit(offset, size)` for each stretch of `file` between `begin` and `end` that is no hole; `name`
// names the file in errors.
Result<void> for_each_data(const UniqueFd& file, std::uint64_t begin, std::uint64_t end,
                           std::string_view name,
                           const std::function<Result<void>(std::uint64_t, std::uint64_t)>& visit);

// The pages that `memory`, of a private memory file, no longer has from the file, whoever wrote them and
// whether anybody kept a log. Error kUnsupported for another backing.
Result<PageSet> find_written_pages(const GuestMemory& memory, const PageMap& pages);

}  // namespace mayfly
