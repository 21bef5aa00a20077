#include "memory/page_extents.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <optional>
#include <string>

#include "base/check.h"
#include "base/file.h"

namespace mayfly {
namespace {

using Visit = std::function<Result<void>(const Extent&)>;

// Of the page map at a time: 16 MiB of RAM.
constexpr std::size_t kEntries = 4096;

// Calls `visit(offset, size, wanted)` for runs of pages of `region` that are all alike.
Result<void> for_each_run(const MemoryRegion& region, const PageMap& pages, bool (*wanted)(std::uint64_t),
                          const std::function<Result<void>(std::uint64_t, std::uint64_t, bool)>& visit) {
  std::array<std::uint64_t, kEntries> entries;
  std::uint64_t begin = 0;
  std::optional<bool> kind;
  const std::uint64_t size = region.range.size();
  for (std::uint64_t offset = 0; offset < size;) {
    const std::uint64_t count = std::min<std::uint64_t>(kEntries, (size - offset) / kGuestPage);
    MAYFLY_TRY(
        pages.read(static_cast<const std::byte*>(region.host) + offset, std::span(entries).first(count)));
    for (std::uint64_t index = 0; index < count; ++index, offset += kGuestPage) {
      const bool now = wanted(entries[index]);
      if (kind && *kind != now) {
        MAYFLY_TRY(visit(begin, offset - begin, *kind));
        begin = offset;
      }
      kind = now;
    }
  }
  return visit(begin, size - begin, kind.value_or(false));
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

Result<void> PageMap::read(const void* host, std::span<std::uint64_t> entries) const {
  // SAFETY: the address is the index of the entry, and nothing is read through it.
  const std::uint64_t offset = reinterpret_cast<std::uintptr_t>(host) / kGuestPage * sizeof(std::uint64_t);
  MAYFLY_TRY_ASSIGN(const std::size_t count,
                    read_at(fd_, offset, {entries.data(), entries.size_bytes()}, "page map"));
  if (count != entries.size_bytes()) {
    return fail(ErrorCode::kInternal, "read page map: it ends early");
  }
  return {};
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
  if (pages == nullptr) {
    return visit({0, size, false});
  }
  if (memory.backing() != Backing::kPrivateFile) {
    return for_each_run(region, *pages, PageMap::is_there,
                        [&](std::uint64_t offset, std::uint64_t length, bool there) {
                          return there ? visit({offset, length, false}) : Result<void>();
                        });
  }
  return for_each_run(region, *pages, PageMap::is_private,
                      [&](std::uint64_t offset, std::uint64_t length, bool own) {
                        return own ? visit({offset, length, false})
                                   : visit_file(memory, region, offset, length, true, visit);
                      });
}

Result<PageSet> find_written_pages(const GuestMemory& memory, const PageMap& pages) {
  if (memory.backing() != Backing::kPrivateFile) {
    return fail(ErrorCode::kUnsupported,
                "guest memory: which pages were written without a log is known of private files alone, not of " +
                    std::string(to_string(memory.backing())));
  }
  PageSet written = no_pages(memory);
  for (std::size_t index = 0; index < written.size(); ++index) {
    MAYFLY_TRY(for_each_run(memory.regions()[index], pages, PageMap::is_private,
                            [&](std::uint64_t offset, std::uint64_t length, bool own) {
                              for (std::uint64_t page = offset / kGuestPage;
                                   own && page < (offset + length) / kGuestPage; ++page) {
                                written[index][page / 64] |= 1ULL << (page % 64);
                              }
                              return Result<void>();
                            }));
  }
  return written;
}

}  // namespace mayfly
