// The file of a working set, of anyone's making: as it comes, and once more with its head and checksum made
// right, so that what lies behind them is reached.
//
// Held: nothing aborts; what is refused is refused with a reason; what is accepted names pages of the memory
// and no others, can be written and is then the same again; and reading it ahead asks for its pages, ends,
// and changes none of them.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
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

// Two regions whose border is within the file, all zeros.
GuestMemory make_memory() {
  UniqueFd file(::memfd_create("working_set_fuzz_memory", MFD_CLOEXEC));
  hold(::ftruncate(file.get(), static_cast<off_t>(kOwner.memory_size)) == 0, "memory has a size");
  const std::vector<GuestRange> ranges = {
      *GuestRange::make(GuestAddress(0), kFirst * kGuestPage),
      *GuestRange::make(GuestAddress(1ULL << 32), (kPages - kFirst) * kGuestPage)};
  return std::move(*GuestMemory::map_file(ranges, std::move(file), "memory"));
}

void read_ahead(WorkingSet set) {
  static const GuestMemory memory = make_memory();
  const auto prefetcher = Prefetcher::start(memory, std::move(set));
  hold(prefetcher.has_value(), "what can be read is read ahead");
  const auto progress = (*prefetcher)->wait_ended();
  hold(!progress.failed, "to its end");
  hold(progress.asked_pages >= progress.wanted_pages, "all of it");
  hold(progress.asked_pages <= 5 * progress.wanted_pages, "and small gaps");
  hold(progress.mapped_pages <= progress.asked_pages, "what is mapped was read");
  hold(progress.own_pages <= progress.wanted_pages, "what is copied was wanted");
}

void try_file(std::span<const std::byte> bytes, bool ahead) {
  const UniqueFd fd = file_of(bytes);
  auto set = WorkingSet::read({fd, "set"}, kOwner);
  if (!set) {
    hold(!set.error().message().empty(), "a refusal has a reason");
    return;
  }
  std::vector<PageRun> runs;
  std::uint64_t pages = 0;
  for (std::size_t index = 0; index < set->size(); ++index) {
    const PageRun run = runs.emplace_back((*set)[index]);
    hold(run.count > 0 && std::uint64_t{run.page} + run.count <= kPages, "a run is of the memory");
    pages += run.count;
  }
  hold(pages == set->pages() && pages <= kPages, "there are no more pages than memory has");
  const UniqueFd again = file_of({});
  hold(write_working_set({again, "set"}, kOwner, runs).has_value(), "what was read can be written");
  const Bytes rewritten = bytes_of(again);
  const bool is_old = bytes[8] == std::byte{1};
  hold(is_old ? rewritten.size() == bytes.size() : std::ranges::equal(rewritten, bytes),
       "a set has one encoding");
  if (ahead) {
    read_ahead(std::move(*set));
  }
}

// A head and a checksum that are right around the runs of `bytes`, with pages that are mostly near.
Bytes sealed(std::span<const std::byte> bytes) {
  const std::size_t runs = bytes.size() / kRun;
  Bytes file = bytes_of([&] {
    UniqueFd fd = file_of({});
    hold(write_working_set({fd, "set"}, kOwner, {}).has_value(), "an empty set can be written");
    return fd;
  }());
  file.resize(kHeader);
  file.insert(file.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(runs * kRun));
  for (std::size_t run = 0; run < runs; ++run) {
    // A number whose second byte is even keeps its first byte only.
    for (std::size_t at = kHeader + run * kRun; at < kHeader + (run + 1) * kRun; at += 4) {
      if ((static_cast<unsigned>(file[at + 1]) & 1) == 0) {
        const bool written = (static_cast<unsigned>(file[at + 1]) & 2) != 0 && (at - kHeader) % kRun != 0;
        put(file, at + 1, written ? 0x800000 : 0, 3);
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
  const auto bytes = std::as_bytes(std::span(data, std::min(size, mayfly::testing::kMost)));
  mayfly::testing::try_file(bytes, false);
  mayfly::testing::try_file(mayfly::testing::sealed(bytes), true);
  return 0;
}
