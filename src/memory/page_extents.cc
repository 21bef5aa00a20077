#include "memory/page_extents.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <string>

#include "base/check.h"
#include "base/file.h"

namespace mayfly {
namespace {

using Visit = std::function<Result<void>(const Extent&)>;

using VisitRun = std::function<Result<void>(std::uint64_t, std::uint64_t)>;

// Documentation/admin-guide/mm/pagemap.rst. The headers of Debian 12 do not have the call yet.
constexpr std::uint64_t kEntryPresent = 1ULL << 63;
constexpr std::uint64_t kEntrySwapped = 1ULL << 62;
constexpr std::uint64_t kEntryFileOrShared = 1ULL << 61;
constexpr std::uint64_t kIsFile = 1U << 2;
constexpr std::uint64_t kIsPresent = 1U << 3;
constexpr std::uint64_t kIsSwapped = 1U << 4;
constexpr std::uint64_t kIsZeroPage = 1U << 5;

struct ScanRequest {
  std::uint64_t size = sizeof(ScanRequest);
  std::uint64_t flags = 0;
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t walk_end = 0;
  std::uint64_t runs = 0;
  std::uint64_t run_count = 0;
  std::uint64_t max_pages = 0;
  std::uint64_t inverted = 0;  // of these, what is not set counts as set
  std::uint64_t all_of = 0;
  std::uint64_t any_of = 0;
  std::uint64_t told = 0;
};
struct ScannedRun {
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanRequest);

// Entries read, and runs told, at a time.
constexpr std::size_t kEntries = 4096;
constexpr std::size_t kRuns = 256;

std::uint64_t address_of(const void* host) {
  // SAFETY: for the kernel's tables; nothing is accessed through the number.
  return reinterpret_cast<std::uintptr_t>(host);
}

// Tells what `request` is about in the `size` bytes at `host`. False where this kernel cannot.
Result<bool> scan(const UniqueFd& map, std::uint64_t host, std::uint64_t size, ScanRequest request,
                  const VisitRun& visit) {
  std::array<ScannedRun, kRuns> runs;
  request.start = host;
  request.end = host + size;
  // SAFETY: the kernel writes there, `run_count` entries at most.
  request.runs = reinterpret_cast<std::uintptr_t>(runs.data());
  request.run_count = runs.size();
  while (request.start < request.end) {
    const int count = ::ioctl(map.get(), kPagemapScan, &request);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0 && request.start == host) {
      return false;
    }
    if (count < 0) {
      return fail_errno(errno, "scan page map");
    }
    for (const ScannedRun& run : std::span(runs).first(static_cast<std::size_t>(count))) {
      MAYFLY_TRY(visit(run.start - host, run.end - run.start));
    }
    MAYFLY_CHECK(request.walk_end > request.start, "the scan of the page map goes on");
    request.start = request.walk_end;
  }
  return true;
}

// Tells the runs of `count` pages, the first of them at `offset`, of which `wanted` holds.
template <typename Wanted>
Result<void> for_each_run(std::uint64_t offset, std::uint64_t count, const Wanted& wanted,
                          const VisitRun& visit) {
  for (std::uint64_t page = 0; page < count;) {
    const std::uint64_t first = page;
    while (page < count && wanted(page)) {
      ++page;
    }
    if (page > first) {
      MAYFLY_TRY(visit(offset + first * kGuestPage, (page - first) * kGuestPage));
    } else {
      ++page;
    }
  }
  return {};
}

Result<void> read_entries(const UniqueFd& map, std::uint64_t host, std::uint64_t size, PageMap::Kind kind,
                          const VisitRun& visit) {
  std::array<std::uint64_t, kEntries> entries;
  const auto wanted = [kind, &entries](std::uint64_t page) {
    return (entries[page] & (kEntryPresent | kEntrySwapped)) != 0 &&
           (kind == PageMap::Kind::kThere || (entries[page] & kEntryFileOrShared) == 0);
  };
  for (std::uint64_t offset = 0; offset < size;) {
    const std::uint64_t count = std::min<std::uint64_t>(kEntries, (size - offset) / kGuestPage);
    const std::size_t bytes = count * sizeof(std::uint64_t);
    MAYFLY_TRY_ASSIGN(const std::size_t got,
                      read_at(map, (host + offset) / kGuestPage * sizeof(std::uint64_t),
                              {entries.data(), bytes}, "page map"));
    if (got != bytes) {
      return fail(ErrorCode::kInternal, "read page map: it ends early");
    }
    MAYFLY_TRY(for_each_run(offset, count, wanted, visit));
    offset += count * kGuestPage;
  }
  return {};
}

// True also where the host does not say.
bool host_has_swap() {
  struct sysinfo host {};
  return ::sysinfo(&host) != 0 || host.totalswap != 0;
}

// Tells what is in memory of the private mapping of `size` bytes at `host`, by mincore(2), which needs no
// /proc. Of a file's pages those that others have in the page cache count as well; a huge page counts whole.
//
// What mincore() does not find has nothing in the page table, or an entry of swap. Whoever has no swap has
// none of these, but must have had none at both ends of the look: a page may have gone to swap that was
// switched on since, or have been in swap that is off by now. (Swap that is being switched off counts until
// it is empty.) Where there is some, or the kernel does not say, the rest is told to be all there.
Result<void> for_each_resident_run(const std::byte* host, std::uint64_t size, const VisitRun& visit) {
  std::array<unsigned char, kEntries> present;
  const auto is_there = [&present](std::uint64_t page) { return (present[page] & 1U) != 0; };
  bool has_swap = host_has_swap();
  for (std::uint64_t offset = 0; offset < size;) {
    const std::uint64_t count = std::min<std::uint64_t>(kEntries, (size - offset) / kGuestPage);
    // SAFETY: looked up in the page table and left as it is; the parameter's type has no const.
    auto* const start = const_cast<std::byte*>(host + offset);
    const bool looked = !has_swap && ::mincore(start, count * kGuestPage, present.data()) == 0;
    has_swap = !looked || host_has_swap();
    if (has_swap) {
      return visit(offset, size - offset);
    }
    MAYFLY_TRY(for_each_run(offset, count, is_there, visit));
    offset += count * kGuestPage;
  }
  return {};
}

Result<void> visit_file(const GuestMemory& memory, const MemoryRegion& region, std::uint64_t offset,
                        std::uint64_t size, bool in_file, const Visit& visit) {
  const std::uint64_t start = region.backing_offset;
  return for_each_data(memory.backing_file(), start + offset, start + offset + size, "memory file",
                       [&](std::uint64_t at, std::uint64_t length) {
                         return visit({at - start, length, in_file});
                       });
}

}  // namespace

PageSet no_pages(const GuestMemory& memory) {
  PageSet pages;
  for (const MemoryRegion& region : memory.regions()) {
    pages.emplace_back((region.range.size() / kGuestPage + 63) / 64);
  }
  return pages;
}

std::uint64_t count_pages(const PageSet& pages) {
  std::uint64_t count = 0;
  for (const auto& region : pages) {
    for (const std::uint64_t word : region) {
      count += static_cast<std::uint64_t>(std::popcount(word));
    }
  }
  return count;
}

void add_pages(PageSet& pages, const PageSet& more) {
  MAYFLY_CHECK(pages.size() == more.size(), "two sets of pages of one memory");
  for (std::size_t region = 0; region < pages.size(); ++region) {
    MAYFLY_CHECK(pages[region].size() == more[region].size(), "two sets of pages of one memory");
    for (std::size_t word = 0; word < pages[region].size(); ++word) {
      pages[region][word] |= more[region][word];
    }
  }
}

Result<PageMap> PageMap::open() {
  MAYFLY_TRY_ASSIGN(UniqueFd fd, open_file("/proc/self/pagemap", O_RDONLY, "page map"));
  return PageMap(std::move(fd));
}

Result<void> PageMap::for_each_run(const void* host, std::uint64_t size, Kind kind,
                                   const VisitRun& visit) const {
  ScanRequest request;
  request.inverted = kind == Kind::kPrivate ? kIsFile : kIsZeroPage;
  request.all_of = request.inverted;
  request.any_of = kIsPresent | kIsSwapped;
  MAYFLY_TRY_ASSIGN(const bool scanned, scan(fd_, address_of(host), size, request, visit));
  return scanned ? Result<void>() : read_entries(fd_, address_of(host), size, kind, visit);
}

Result<void> for_each_data(const UniqueFd& file, std::uint64_t begin, std::uint64_t end,
                           std::string_view name,
                           const std::function<Result<void>(std::uint64_t, std::uint64_t)>& visit) {
  while (begin < end) {
    const off_t data = ::lseek(file.get(), static_cast<off_t>(begin), SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
      return {};  // holes up to the end
    }
    const off_t hole = data < 0 ? data : ::lseek(file.get(), data, SEEK_HOLE);
    if (hole < 0 && !(data >= 0 && errno == ENXIO)) {
      return fail_errno(errno, std::string("find the holes of ").append(name));
    }
    // ENXIO at the second call: the stretch was cut off in between.
    if (hole < 0 || static_cast<std::uint64_t>(data) >= end) {
      return {};
    }
    const auto from = static_cast<std::uint64_t>(data);
    begin = std::min(static_cast<std::uint64_t>(hole), end);
    MAYFLY_TRY(visit(from, begin - from));
  }
  return {};
}

Result<void> for_each_extent(const GuestMemory& memory, const MemoryRegion& region, const PageMap* pages,
                             const Visit& visit) {
  const std::uint64_t size = region.range.size();
  switch (memory.backing()) {
    case Backing::kMemfd:
      return visit_file(memory, region, 0, size, false, visit);
    case Backing::kHugetlb2M:
      // hugetlbfs tells no holes, but reading one takes no page.
      return visit({0, size, true});
    case Backing::kAnonymous:
    case Backing::kTransparentHuge:
    case Backing::kPrivateFile:
      break;
  }
  const auto for_each_run = [&](PageMap::Kind kind, const VisitRun& visit_run) {
    return pages != nullptr
               ? pages->for_each_run(region.host, size, kind, visit_run)
               : for_each_resident_run(static_cast<const std::byte*>(region.host), size, visit_run);
  };
  if (memory.backing() != Backing::kPrivateFile) {
    return for_each_run(PageMap::Kind::kThere, [&](std::uint64_t offset, std::uint64_t length) {
      return visit({offset, length, false});
    });
  }
  std::uint64_t at = 0;  // before it, all is told
  const auto visit_private = [&](std::uint64_t offset, std::uint64_t length) -> Result<void> {
    MAYFLY_TRY(visit_file(memory, region, at, offset - at, true, visit));
    at = offset + length;
    return visit({offset, length, false});
  };
  MAYFLY_TRY(for_each_run(PageMap::Kind::kPrivate, visit_private));
  return visit_file(memory, region, at, size - at, true, visit);
}

Result<PageSet> find_written_pages(const GuestMemory& memory, const PageMap& pages) {
  if (memory.backing() != Backing::kPrivateFile) {
    return fail(
        ErrorCode::kUnsupported,
        "guest memory: which pages were written without a log is known of private files alone, not of " +
            std::string(to_string(memory.backing())));
  }
  PageSet written = no_pages(memory);
  for (std::size_t index = 0; index < written.size(); ++index) {
    const MemoryRegion& region = memory.regions()[index];
    MAYFLY_TRY(pages.for_each_run(region.host, region.range.size(), PageMap::Kind::kPrivate,
                                  [&](std::uint64_t offset, std::uint64_t length) {
                                    const std::uint64_t end = (offset + length) / kGuestPage;
                                    for (std::uint64_t page = offset / kGuestPage; page < end; ++page) {
                                      written[index][page / 64] |= 1ULL << (page % 64);
                                    }
                                    return Result<void>();
                                  }));
  }
  return written;
}

}  // namespace mayfly
