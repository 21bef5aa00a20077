// The file of a working set, of anyone's making: as it comes, and twice more with its head and checksum made
// right, so that what lies behind them is reached: of a small memory, and of one that has huge pages.
//
// Held: nothing aborts; what is refused is refused with a reason; what is accepted names pages of the memory
// and no others, can be written and is then the same again; reading it ahead asks for its pages and ends; and
// what becomes the guest's own is what the set is dense in, holds what the file holds, and is not asked for
// again.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/crc64.h"
#include "base/file.h"
#include "memory/prefetch.h"
#include "memory/working_set.h"
#include "support/fuzz_input.h"

namespace mayfly::testing {
namespace {

// Of memory/working_set.h.
constexpr std::size_t kHeader = 32;
constexpr std::size_t kRun = 8;
constexpr std::size_t kChecksum = 8;
constexpr std::size_t kMost = 4096;  // bytes of input

constexpr std::uint64_t kFirst = 100;  // pages
constexpr std::uint64_t kPages = 160;
constexpr WorkingSetOwner kOwner = {.memory_size = kPages * kGuestPage, .snapshot = 5};

// The memory with huge pages: of which blocks 0 and 1 lie whole in the first region, 3 in the second; 5 and 6
// in the third, where none is aligned as in the file.
constexpr std::uint64_t kBlock = 512;  // pages of a huge one
constexpr std::array<std::uint64_t, 3> kLargeRegions = {1100, 1000, 1500};
constexpr std::array<std::uint64_t, 3> kWholeBlocks = {0, 1, 3};
constexpr std::uint64_t kLargePages = 3600;
constexpr std::uint64_t kLargeSecond = (1ULL << 32) + kLargeRegions[0] % kBlock * kGuestPage;
constexpr WorkingSetOwner kLargeOwner = {.memory_size = kLargePages * kGuestPage, .snapshot = 5};

using Bytes = std::vector<std::byte>;

void put(Bytes& bytes, std::size_t at, std::uint64_t value, std::size_t width) {
  for (std::size_t index = 0; index < width; ++index) {
    bytes[at + index] = static_cast<std::byte>(value >> (8 * index));
  }
}

UniqueFd file_of(std::span<const std::byte> bytes) {
  UniqueFd fd(::memfd_create("working_set_fuzz", MFD_CLOEXEC));
  hold(::pwrite(fd.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
       "the file can be made");
  return fd;
}

Bytes bytes_of(const UniqueFd& fd) {
  Bytes bytes(static_cast<std::size_t>(::lseek(fd.get(), 0, SEEK_END)));
  hold(*read_at(fd, 0, {bytes.data(), bytes.size()}, "set") == bytes.size(), "the file can be read");
  return bytes;
}

GuestRange pages_from(std::uint64_t address, std::uint64_t pages) {
  return *GuestRange::make(GuestAddress(address), pages * kGuestPage);
}

UniqueFd memory_file(const WorkingSetOwner& owner) {
  UniqueFd file(::memfd_create("working_set_fuzz_memory", MFD_CLOEXEC));
  hold(::ftruncate(file.get(), static_cast<off_t>(owner.memory_size)) == 0, "memory has a size");
  return file;
}

// Two regions whose border is within the file, all zeros.
GuestMemory make_memory() {
  const std::vector<GuestRange> ranges = {pages_from(0, kFirst), pages_from(1ULL << 32, kPages - kFirst)};
  return std::move(*GuestMemory::map_file(ranges, memory_file(kOwner), "memory"));
}

// What a page of the memory with huge pages begins with. The page cache has all of block 0, and next to
// nothing of the others.
std::uint64_t content(std::uint64_t page) {
  return page < kBlock || page % kBlock == 0 ? page + 1 : 0;
}

// Of the first two regions.
GuestAddress address_of(std::uint64_t page) {
  return GuestAddress(page < kLargeRegions[0] ? page * kGuestPage
                                              : kLargeSecond + (page - kLargeRegions[0]) * kGuestPage);
}

GuestMemory make_large_memory() {
  static const Bytes first_block = [] {
    Bytes bytes(kBlock * kGuestPage);
    for (std::uint64_t page = 0; page < kBlock; ++page) {
      put(bytes, page * kGuestPage, content(page), sizeof(std::uint64_t));
    }
    return bytes;
  }();
  UniqueFd file = memory_file(kLargeOwner);
  const auto write = [&file](std::uint64_t page, std::span<const std::byte> bytes) {
    hold(::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(page * kGuestPage)) ==
             static_cast<ssize_t>(bytes.size()),
         "memory can be written");
  };
  write(0, first_block);
  for (std::uint64_t page = kBlock; page < kLargePages; page += kBlock) {
    const std::uint64_t number = content(page);
    write(page, std::as_bytes(std::span(&number, 1)));
  }
  const std::vector<GuestRange> ranges = {pages_from(0, kLargeRegions[0]),
                                          pages_from(kLargeSecond, kLargeRegions[1]),
                                          pages_from(1ULL << 33, kLargeRegions[2])};
  return std::move(*GuestMemory::map_file(ranges, std::move(file), "memory"));
}

Prefetcher::Progress read_ahead(const GuestMemory& memory, WorkingSet set, OwnBlocks own = {}) {
  const std::uint64_t all = set.pages();
  const auto prefetcher = Prefetcher::start(memory, std::move(set), {}, std::move(own));
  hold(prefetcher.has_value(), "what can be read is read ahead");
  auto progress = (*prefetcher)->wait_ended();
  hold(!progress.failed, "to its end");
  hold(progress.asked_pages >= progress.wanted_pages, "all of it");
  hold(progress.asked_pages <= 5 * all, "and small gaps");
  hold(progress.mapped_pages <= progress.asked_pages, "what is mapped was read");
  hold(progress.own_pages <= all, "what is copied was wanted");
  return progress;
}

void take_own_and_read_ahead(WorkingSet set) {
  std::vector<std::uint64_t> counts(kLargePages / kBlock + 1);  // of the set, in each block
  for (std::size_t index = 0; index < set.size(); ++index) {
    const PageRun run = set[index];
    for (std::uint64_t page = run.page; page < std::uint64_t{run.page} + run.count; ++page) {
      ++counts[page / kBlock];
    }
  }
  OwnBlocks dense(kLargePages / kBlock);
  std::uint64_t left = set.pages();
  for (const std::uint64_t block : kWholeBlocks) {
    dense[block] = counts[block] >= kBlock / 8;
    left -= dense[block] ? counts[block] : 0;
  }
  GuestMemory memory = make_large_memory();
  const auto own = take_own(memory, set);
  hold(own.has_value(), "what can be read can be the guest's own");
  hold(*own == dense, "what a set is dense in is, and nothing else");
  hold(read_ahead(memory, std::move(set), *own).wanted_pages == left, "a sweep has the rest");
  for (const std::uint64_t block : kWholeBlocks) {
    for (std::uint64_t page = block * kBlock; dense[block] && page < (block + 1) * kBlock; ++page) {
      const auto number = memory.read_object<std::uint64_t>(address_of(page));
      hold(number && *number == content(page), "what is the guest's own holds what the file holds");
    }
  }
}

enum class Ahead : std::uint8_t { kNot, kSweep, kOwn };

void try_file(std::span<const std::byte> bytes, const WorkingSetOwner& owner, Ahead ahead) {
  const UniqueFd fd = file_of(bytes);
  auto set = WorkingSet::read({fd, "set"}, owner);
  if (!set) {
    hold(!set.error().message().empty(), "a refusal has a reason");
    return;
  }
  const std::uint64_t most = owner.memory_size / kGuestPage;
  std::vector<PageRun> runs;
  std::uint64_t pages = 0;
  for (std::size_t index = 0; index < set->size(); ++index) {
    const PageRun run = runs.emplace_back((*set)[index]);
    hold(run.count > 0 && std::uint64_t{run.page} + run.count <= most, "a run is of the memory");
    pages += run.count;
  }
  hold(pages == set->pages() && pages <= most, "there are no more pages than memory has");
  const UniqueFd again = file_of({});
  hold(write_working_set({again, "set"}, owner, runs).has_value(), "what was read can be written");
  const Bytes rewritten = bytes_of(again);
  const bool is_old = bytes[8] == std::byte{1};
  hold(is_old ? rewritten.size() == bytes.size() : std::ranges::equal(rewritten, bytes),
       "a set has one encoding");
  if (ahead == Ahead::kSweep) {
    static const GuestMemory memory = make_memory();
    const auto wanted = set->pages();
    hold(read_ahead(memory, std::move(*set)).wanted_pages == wanted, "a sweep has all");
  }
  if (ahead == Ahead::kOwn) {
    take_own_and_read_ahead(std::move(*set));
  }
}

// A head and a checksum that are right around the runs of `bytes`, with pages that are mostly near: a number
// of one byte is one of pages times `page_scale`, or a count times `count_scale`.
Bytes sealed(std::span<const std::byte> bytes, const WorkingSetOwner& owner, std::uint64_t page_scale,
             std::uint64_t count_scale) {
  const std::size_t runs = bytes.size() / kRun;
  Bytes file = bytes_of([&] {
    UniqueFd fd = file_of({});
    hold(write_working_set({fd, "set"}, owner, {}).has_value(), "an empty set can be written");
    return fd;
  }());
  file.resize(kHeader);
  file.insert(file.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(runs * kRun));
  for (std::size_t run = 0; run < runs; ++run) {
    // A number whose second byte is even keeps its first byte only.
    for (std::size_t at = kHeader + run * kRun; at < kHeader + (run + 1) * kRun; at += 4) {
      if ((static_cast<unsigned>(file[at + 1]) & 1) == 0) {
        const bool is_count = (at - kHeader) % kRun != 0;
        const bool written = is_count && (static_cast<unsigned>(file[at + 1]) & 2) != 0;
        const std::uint64_t number =
            static_cast<std::uint64_t>(file[at]) * (is_count ? count_scale : page_scale);
        put(file, at, number | (written ? 1ULL << 31 : 0), 4);
      }
    }
  }
  put(file, 12, runs, 4);
  file.resize(file.size() + kChecksum);
  const std::size_t end = file.size() - kChecksum;
  put(file, end, crc64(std::span(file).first(end)), kChecksum);
  return file;
}

}  // namespace
}  // namespace mayfly::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace mayfly::testing;  // NOLINT(google-build-using-namespace): the fuzzer's function is no one's
  const auto bytes = std::as_bytes(std::span(data, std::min(size, kMost)));
  try_file(bytes, kOwner, Ahead::kNot);
  try_file(sealed(bytes, kOwner, 1, 1), kOwner, Ahead::kSweep);
  // Some of them reach past the end.
  try_file(sealed(bytes, kLargeOwner, 12, 2), kLargeOwner, Ahead::kOwn);
  return 0;
}
