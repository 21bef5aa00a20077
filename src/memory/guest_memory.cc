#include "memory/guest_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/checked.h"
#include "base/crash.h"
#include "base/file.h"
#include "base/mutex.h"
#include "base/text.h"
#include "memory/guest_copy.h"

namespace mayfly {
namespace {

// Flags that the C library's headers may not know yet.
constexpr unsigned int kMfdNoexecSeal = 0x0008;  // linux/memfd.h: MFD_NOEXEC_SEAL, since Linux 6.3
constexpr unsigned int kMfdHuge2M = 21U << 26;   // linux/memfd.h: MFD_HUGE_2MB

constexpr std::uint64_t kHugePage = 2ULL << 20;
constexpr std::uint64_t kMiB = 1ULL << 20;

// Where memory files are mapped, for the last words of a process that touches what was cut off of one:
// nothing here is ever freed, and a signal's handler may read it at any moment.
struct MappedFile {
  std::atomic<std::uintptr_t> begin = 0;  // 0: free
  std::atomic<std::uintptr_t> end = 0;
  std::array<char, 256> name{};
};
constexpr std::size_t kMostNames = 32;  // what is mapped beyond goes without
std::array<MappedFile, kMostNames> g_mapped;
Mutex g_mapped_mutex;  // a leaf: of who changes it

std::string_view name_of_address(std::uintptr_t address) {
  for (const MappedFile& file : g_mapped) {
    const std::uintptr_t begin = file.begin.load(std::memory_order_acquire);
    if (begin != 0 && address >= begin && address < file.end) {
      return file.name.data();
    }
  }
  return {};
}

void note_mapped(const MemoryRegion& region, std::string_view name) {
  const MutexLock lock(g_mapped_mutex);
  set_address_names(name_of_address);
  for (MappedFile& file : g_mapped) {
    if (file.begin == 0) {
      file.name.fill('\0');
      name.copy(file.name.data(), file.name.size() - 1);
      // SAFETY: the number is compared with others; nothing is accessed through it.
      const auto begin = reinterpret_cast<std::uintptr_t>(region.host);
      file.end = begin + region.range.size();
      file.begin.store(begin, std::memory_order_release);
      return;
    }
  }
}

void forget_mapped(const void* start, std::size_t size) {
  // SAFETY: as above.
  const auto begin = reinterpret_cast<std::uintptr_t>(start);
  const MutexLock lock(g_mapped_mutex);
  for (MappedFile& file : g_mapped) {
    if (file.begin >= begin && file.begin < begin + size) {
      file.begin = 0;
    }
  }
}

std::uint64_t page_size() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

bool is_shared(Backing backing) {
  return backing == Backing::kMemfd || backing == Backing::kHugetlb2M;
}

// A count from the host's pool of 2 MiB pages, or nothing where it cannot be read (in a jail without /sys).
std::optional<std::uint64_t> huge_page_count(const char* which) {
  constexpr std::string_view kPool = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const std::string text = read_file(std::string(kPool) + which, "count of huge pages", 64).value_or("");
  return parse_integer<std::uint64_t>(std::string_view(text).substr(0, text.find('\n')));
}

// What a person can do about a pool that has too few huge pages: "512 pages of 2 MiB needed, 3 free on this
// host; ...".
std::string huge_page_advice(std::uint64_t size) {
  const std::uint64_t needed = size / kHugePage;
  std::string text = std::to_string(needed) + " pages of 2 MiB needed";
  const auto total = huge_page_count("nr_hugepages");
  const auto free = huge_page_count("free_hugepages");
  const auto reserved = huge_page_count("resv_hugepages");
  std::uint64_t target = needed;
  if (total && free && reserved) {
    const std::uint64_t available = *free - std::min(*free, *reserved);
    text += ", " + std::to_string(available) + " free on this host";
    target = *total + needed - std::min(needed, available);
  }
  return text + "; reserve them with `sysctl vm.nr_hugepages=" + std::to_string(target) + "`";
}

Result<std::uint64_t> check_ranges(std::span<const GuestRange> ranges, Backing backing) {
  if (ranges.empty()) {
    return fail(ErrorCode::kInvalidArgument, "guest memory: no ranges");
  }
  const std::uint64_t unit = backing == Backing::kHugetlb2M ? kHugePage : page_size();
  std::uint64_t total = 0;
  const GuestRange* before = nullptr;
  for (const GuestRange& range : ranges) {
    const std::string name =
        "guest memory range " + hex(range.base().value()) + " of " + hex(range.size()) + " bytes";
    if (!range.base().is_aligned(unit) || range.size() % unit != 0) {
      return fail(ErrorCode::kInvalidArgument,
                  name + ": base and size must be multiples of " + std::to_string(unit) + " bytes");
    }
    if (before != nullptr && before->last() >= range.base()) {
      return fail(ErrorCode::kInvalidArgument, name + ": overlaps or precedes the range before it");
    }
    before = &range;
    const auto sum = checked_add(total, range.size());
    if (!sum) {
      return fail(ErrorCode::kInvalidArgument, "guest memory: all of the address space cannot be RAM");
    }
    total = *sum;
  }
  return total;
}

// `host` for `size` bytes: neither in core dumps (a guest's secrets, and its size) nor in children. The
// monitor starts no children while a guest runs; should it fork all the same, pages would be shared copy on
// write, and the next write to each would cost a copy and, for pages that the host has pinned for I/O, could
// go to the wrong one.
Result<void> advise(void* host, std::size_t size, Backing backing) {
  for (const int advice : {MADV_DONTDUMP, MADV_DONTFORK}) {
    if (::madvise(host, size, advice) != 0) {
      return fail_errno(errno, "keep guest memory from core dumps and children");
    }
  }
  if (backing == Backing::kTransparentHuge && ::madvise(host, size, MADV_HUGEPAGE) != 0) {
    if (errno == EINVAL) {
      return fail(ErrorCode::kUnsupported,
                  "guest memory in transparent huge pages: this host's kernel is built without them");
    }
    return fail_errno(errno, "ask for transparent huge pages for guest memory");
  }
  return {};
}

tl::unexpected<Error> fail_ended(std::string_view role, std::uint64_t end, std::uint64_t missing) {
  return fail(ErrorCode::kInvalidImage, std::string(role) + ": ends at byte " + std::to_string(end) + ", " +
                                            std::to_string(missing) +
                                            " bytes before the end of what it should hold");
}

// Of each 2 MiB of a file's mapping, whether the page cache has half of it or more. Who may not know
// (mincore(2)) is told so.
std::vector<bool> cached_blocks(std::byte* host, std::uint64_t length) {
  std::vector<bool> cached(length / kHugePage);
  std::vector<unsigned char> pages(kHugePage / page_size());
  for (std::size_t block = 0; block < cached.size(); ++block) {
    cached[block] = ::mincore(host + block * kHugePage, kHugePage, pages.data()) != 0 ||
                    std::count_if(pages.begin(), pages.end(), [](unsigned char page) {
                      return (page & 1) != 0;
                    }) >= static_cast<std::ptrdiff_t>(pages.size() / 2);
  }
  return cached;
}

// The offsets come from the file's own headers, so they may say anything.
Result<void> check_file_range(std::uint64_t offset, std::uint64_t length, std::string_view role) {
  const auto end = checked_add(offset, length);
  if (!end || !std::in_range<off_t>(*end)) {
    return fail(ErrorCode::kInvalidImage, std::string(role) + ": " + hex(length) + " bytes from offset " +
                                              hex(offset) + " on are more than a file can hold");
  }
  return {};
}

}  // namespace

Result<void> check_memory_file(const UniqueFd& file, std::uint64_t size, std::string_view name) {
  struct stat stat {};
  if (::fstat(file.get(), &stat) != 0) {
    return fail_errno(errno, std::string("look at ").append(name));
  }
  if (!S_ISREG(stat.st_mode)) {
    return fail(ErrorCode::kInvalidImage, std::string(name) + ": not a regular file");
  }
  if (static_cast<std::uint64_t>(stat.st_size) != size) {
    return fail(ErrorCode::kInvalidImage, std::string(name) + ": has " + std::to_string(stat.st_size) +
                                              " bytes where the guest's memory has " + std::to_string(size));
  }
  return {};
}

std::string_view to_string(Backing backing) {
  switch (backing) {
    case Backing::kAnonymous:
      return "anonymous";
    case Backing::kTransparentHuge:
      return "transparent huge pages";
    case Backing::kMemfd:
      return "memfd";
    case Backing::kHugetlb2M:
      return "2 MiB huge pages";
    case Backing::kPrivateFile:
      return "private memory file";
  }
  return "unknown";
}

Error MemoryFault::to_error() const {
  return Error(ErrorCode::kOutOfRange, "guest address " + hex(address.value()) + ", " +
                                           std::to_string(length) +
                                           " bytes: not within one range of guest memory");
}

void GuestSlice::copy_to(std::span<std::byte> destination) const {
  MAYFLY_CHECK(destination.size() <= size_, "a copy from a guest slice stays within it");
  copy_from_guest(destination.data(), host_, destination.size());
}

void GuestSlice::copy_from(std::span<const std::byte> source) const {
  MAYFLY_CHECK(source.size() <= size_, "a copy to a guest slice stays within it");
  copy_to_guest(host_, source.data(), source.size());
}

GuestMemory::Reservation::Reservation(Reservation&& other) noexcept
    : start_(std::exchange(other.start_, nullptr)), size_(other.size_) {}

GuestMemory::Reservation::~Reservation() {
  if (start_ != nullptr) {
    forget_mapped(start_, size_);
    ::munmap(start_, size_);
  }
}

Result<GuestMemory> GuestMemory::create(std::span<const GuestRange> ranges, Backing backing) {
  if (backing == Backing::kPrivateFile) {
    return fail(ErrorCode::kInvalidArgument, "guest memory: a private file to map is missing");
  }
  MAYFLY_TRY_ASSIGN(const std::uint64_t total, check_ranges(ranges, backing));
  GuestMemory memory(backing);
  if (is_shared(backing)) {
    MAYFLY_TRY(memory.open_backing(total));
  }
  MAYFLY_TRY(memory.map_ranges(ranges, total));
  return memory;
}

Result<GuestMemory> GuestMemory::map_file(std::span<const GuestRange> ranges, UniqueFd file,
                                          std::string_view name) {
  MAYFLY_TRY_ASSIGN(const std::uint64_t total, check_ranges(ranges, Backing::kPrivateFile));
  MAYFLY_TRY(check_memory_file(file, total, name));
  GuestMemory memory(Backing::kPrivateFile);
  memory.backing_fd_ = std::move(file);
  if (const auto mapped = memory.map_ranges(ranges, total); !mapped) {
    return tl::make_unexpected(mapped.error().within(name));
  }
  for (const MemoryRegion& region : memory.regions_) {
    note_mapped(region, name);
  }
  return memory;
}

Result<void> GuestMemory::map_ranges(std::span<const GuestRange> ranges, std::uint64_t total) {
  std::uint64_t offset = 0;
  for (const GuestRange& range : ranges) {
    MAYFLY_TRY(map_range(range, offset, total));
    offset += range.size();
  }
  return {};
}

Result<void> GuestMemory::open_backing(std::uint64_t size) {
  const bool huge = backing_ == Backing::kHugetlb2M;
  const unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB | kMfdHuge2M : 0U);
  int fd = ::memfd_create("guest_memory", flags | kMfdNoexecSeal);
  if (fd < 0 && errno == EINVAL) {
    fd = ::memfd_create("guest_memory", flags);  // before Linux 6.3
  }
  if (fd < 0) {
    if (huge && (errno == EINVAL || errno == ENODEV || errno == ENOENT || errno == ENOSYS)) {
      return fail(ErrorCode::kUnsupported, "guest memory in 2 MiB huge pages: this host has no such pages");
    }
    return fail_errno(errno, "create a memfd for guest memory");
  }
  backing_fd_ = UniqueFd(fd);

  // Growing a file past this limit fails with an error that does not name it.
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && size > limit.rlim_cur) {
    return fail(ErrorCode::kExhausted,
                "guest memory of " + std::to_string(size / kMiB) +
                    " MiB in a memfd: more than the process's file size limit (RLIMIT_FSIZE)");
  }
  if (!std::in_range<off_t>(size) || ::ftruncate(fd, static_cast<off_t>(size)) != 0) {
    return fail_errno(std::in_range<off_t>(size) ? errno : ENOMEM,
                      "size a memfd for " + std::to_string(size / kMiB) + " MiB of guest memory");
  }
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return fail_errno(errno, "seal the memfd of guest memory");
  }
  return {};
}

Result<void> GuestMemory::map_range(const GuestRange& range, std::uint64_t backing_offset,
                                    std::uint64_t total) {
  const bool huge = backing_ == Backing::kHugetlb2M;
  std::string doing = "map " + std::to_string(total / kMiB) + " MiB of guest memory (";
  // Address space first: a guard on each side, and slack to choose a start that is congruent to the guest's
  // address modulo 2 MiB, so that a huge page of the guest can be one of the host.
  const auto with_guards = checked_add(range.size(), 3 * kHugePage);
  void* reserved = MAP_FAILED;
  if (with_guards) {
    reserved = ::mmap(nullptr, *with_guards, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (reserved == MAP_FAILED) {
    return fail_errno(with_guards ? errno : ENOMEM,
                      doing + "address space is limited by the processor and RLIMIT_AS)");
  }
  reservations_.emplace_back(reserved, *with_guards);

  auto* host = static_cast<std::byte*>(reserved) + kHugePage;
  // SAFETY: for arithmetic on the address only.
  host += (range.base().value() - reinterpret_cast<std::uintptr_t>(host)) % kHugePage;
  // MAP_NORESERVE: a guest's RAM is not charged before it is touched. Not for huge pages: their reservation
  // is what keeps a fault from failing.
  const bool shared = is_shared(backing_);
  const int kind = shared ? MAP_SHARED : MAP_PRIVATE;
  const int flags = kind | (backing_fd_ ? 0 : MAP_ANONYMOUS) | MAP_FIXED | (huge ? 0 : MAP_NORESERVE);
  if (::mmap(host, range.size(), PROT_READ | PROT_WRITE, flags, backing_fd_.get(),
             static_cast<off_t>(backing_offset)) == MAP_FAILED) {
    const int why = errno;
    return fail_errno(why,
                      doing + (huge ? huge_page_advice(total) : "limited by vm.overcommit_memory") + ")");
  }
  MAYFLY_TRY(advise(host, range.size(), backing_));
  regions_.push_back({range, host, shared ? backing_fd_.get() : -1, backing_offset});
  return {};
}

std::uint64_t GuestMemory::size() const {
  std::uint64_t total = 0;
  for (const MemoryRegion& region : regions_) {
    total += region.range.size();
  }
  return total;
}

bool GuestMemory::contains(const GuestRange& range) const {
  return locate(range.base(), range.size()).has_value();
}

MemoryResult<void*> GuestMemory::locate(GuestAddress address, std::uint64_t length) const {
  for (const MemoryRegion& region : regions_) {  // one or two: a search would cost more
    const auto offset = address.checked_offset_from(region.range.base());
    if (offset && *offset < region.range.size() && length <= region.range.size() - *offset) {
      return static_cast<std::byte*>(region.host) + *offset;
    }
  }
  return tl::make_unexpected(MemoryFault{address, length});
}

MemoryResult<void> GuestMemory::read(GuestAddress address, std::span<std::byte> destination) const {
  if (destination.empty()) {
    return {};
  }
  const auto host = locate(address, destination.size());
  if (!host) {
    return tl::make_unexpected(host.error());
  }
  copy_from_guest(destination.data(), *host, destination.size());
  return {};
}

MemoryResult<void> GuestMemory::write(GuestAddress address, std::span<const std::byte> source) {
  if (source.empty()) {
    return {};
  }
  const auto host = locate(address, source.size());
  if (!host) {
    return tl::make_unexpected(host.error());
  }
  copy_to_guest(*host, source.data(), source.size());
  note_written(address, source.size());
  return {};
}

MemoryResult<void> GuestMemory::fill(GuestAddress address, std::uint64_t length, std::byte value) {
  if (length == 0) {
    return {};
  }
  const auto host = locate(address, length);
  if (!host) {
    return tl::make_unexpected(host.error());
  }
  fill_guest(*host, value, length);
  note_written(address, length);
  return {};
}

void GuestSlice::fill(std::byte value) const {
  fill_guest(host_, value, size_);
}

MemoryResult<GuestSlice> GuestMemory::slice(GuestAddress address, std::uint64_t length) const {
  if (length == 0) {
    return tl::make_unexpected(MemoryFault{address, length});
  }
  const auto host = locate(address, length);
  if (!host) {
    return tl::make_unexpected(host.error());
  }
  return GuestSlice(*host, length, address);
}

Result<void> GuestMemory::load_file(GuestAddress address, const UniqueFd& fd, std::uint64_t file_offset,
                                    std::uint64_t length, std::string_view role) {
  if (length == 0) {
    return {};
  }
  const auto host = locate(address, length);
  if (!host) {
    return tl::make_unexpected(host.error().to_error().within(role));
  }
  MAYFLY_TRY(check_file_range(file_offset, length, role));
  const auto read = read_at(fd, file_offset, {*host, length}, role);
  note_written(address, length);  // also where only a part came, or it failed on the way
  MAYFLY_TRY_ASSIGN(const std::size_t got, read);
  return got == length ? Result<void>() : fail_ended(role, file_offset + got, length - got);
}

Result<void> GuestMemory::take_own(std::uint64_t offset, std::uint64_t length) {
  MAYFLY_CHECK(backing_ == Backing::kPrivateFile, "only a private file's pages can become a memory's own");
  for (const MemoryRegion& region : regions_) {
    if (offset < region.backing_offset || offset - region.backing_offset >= region.range.size()) {
      continue;
    }
    const std::uint64_t start = offset - region.backing_offset;
    const auto address = region.range.base().checked_add(start);
    MAYFLY_CHECK(address && length <= region.range.size() - start, "the stretch lies in one region");
    MAYFLY_CHECK(offset % kHugePage == 0 && length % kHugePage == 0 && address->value() % kHugePage == 0,
                 "the stretch is of whole huge pages");
    std::byte* const host = static_cast<std::byte*>(region.host) + start;
    const std::vector<bool> cached = cached_blocks(host, length);
    if (::mmap(host, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
               -1, 0) == MAP_FAILED) {
      return fail_errno(errno,
                        "map " + std::to_string(length / kMiB) +
                            " MiB of guest memory (limited by vm.overcommit_memory and vm.max_map_count)");
    }
    MAYFLY_TRY(advise(host, length, Backing::kTransparentHuge));
    constexpr std::string_view kRole = "guest memory's own file";
    for (std::uint64_t done = 0; done < length;) {
      const std::size_t block = done / kHugePage;
      const auto end =
          std::find(cached.begin() + static_cast<std::ptrdiff_t>(block), cached.end(), !cached[block]);
      const std::uint64_t size = static_cast<std::uint64_t>(end - cached.begin()) * kHugePage - done;
      const auto read = cached[block] ? read_at : read_past_cache;
      MAYFLY_TRY_ASSIGN(const std::size_t got, read(backing_fd_, offset + done, {host + done, size}, kRole));
      if (got < size) {
        return fail_ended(kRole, offset + done + got, size - got);
      }
      done += size;
    }
    return {};
  }
  MAYFLY_CHECK(false, "the stretch lies in a region");
}

void GuestMemory::note_writes(bool on) {
  if (!on) {
    record_.stop();
    return;
  }
  std::vector<std::uint64_t> sizes;
  for (const MemoryRegion& region : regions_) {
    sizes.push_back(region.range.size());
  }
  record_.start(sizes);
}

void GuestMemory::mark_written(GuestAddress address, std::uint64_t length) {
  if (length == 0) {
    return;
  }
  for (std::size_t index = 0; index < regions_.size(); ++index) {
    const GuestRange& range = regions_[index].range;
    const auto offset = address.checked_offset_from(range.base());
    if (offset && *offset < range.size() && length <= range.size() - *offset) {
      record_.mark(index, *offset, length);
      return;
    }
  }
  MAYFLY_CHECK(false, "what is noted as written lies in guest RAM");
}

Result<std::vector<std::uint64_t>> GuestMemory::take_noted(std::size_t region) {
  if (region >= regions_.size()) {
    return fail(ErrorCode::kOutOfRange, "take noted pages: there is no region " + std::to_string(region));
  }
  if (!notes_writes()) {
    return fail(ErrorCode::kNotFound, "take noted pages: writes to guest memory are not noted");
  }
  return record_.take(region);
}

}  // namespace mayfly
