#include "memory/guest_memory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "memory/x86_64/ranges.h"

namespace mayfly {

// How GoogleTest names the parameter of a case.
// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for this name
static void PrintTo(Backing backing, std::ostream* out) {
  *out << to_string(backing);
}

namespace {

using testing::HasSubstr;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMiB = 1ULL << 20;
constexpr std::uint64_t kGiB = 1ULL << 30;
constexpr std::uint64_t kHugePage = 2 * kMiB;
constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

GuestRange range(std::uint64_t base, std::uint64_t size) {
  return GuestRange::make(GuestAddress(base), size).value();
}

GuestMemory memory_of(const std::vector<GuestRange>& ranges, Backing backing = Backing::kAnonymous) {
  return GuestMemory::create(ranges, backing).value();
}

std::vector<std::byte> pattern(std::size_t size, unsigned int seed = 1) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>((i * 7 + i / 256 + seed) & 0xff);
  }
  return bytes;
}

std::vector<std::byte> contents(const GuestMemory& memory, std::uint64_t address, std::size_t size) {
  std::vector<std::byte> bytes(size);
  EXPECT_TRUE(memory.read(GuestAddress(address), bytes).has_value()) << std::hex << address;
  return bytes;
}

UniqueFd file_of(std::span<const std::byte> bytes) {
  UniqueFd fd(::memfd_create("test_file", MFD_CLOEXEC));
  EXPECT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return fd;
}

// Whether this process can read the byte at `host`: asked of the kernel, which answers where we would be
// ended.
bool is_mapped(const void* host) {
  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd writer(ends[1]);
  const ssize_t written = ::write(writer.get(), host, 1);
  EXPECT_TRUE(written == 1 || errno == EFAULT);
  return written == 1;
}

const std::byte* host_of(const GuestMemory& memory, std::size_t region = 0) {
  return static_cast<const std::byte*>(memory.regions()[region].host);
}

// The pages of [host, host + size) that are in memory.
std::uint64_t resident_pages(const void* host, std::uint64_t size) {
  std::vector<unsigned char> pages(size / kPage);
  // SAFETY: mincore() takes a pointer to non-const and writes nothing there.
  EXPECT_EQ(::mincore(const_cast<void*>(host), size, pages.data()), 0);
  return static_cast<std::uint64_t>(
      std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; }));
}

// The VmFlags (proc(5), smaps) of the mapping that starts at or before `host`.
std::set<std::string> mapping_flags(const void* host) {
  std::ifstream smaps("/proc/self/smaps");
  // SAFETY: for comparison with the addresses in the file only.
  const auto wanted = reinterpret_cast<std::uintptr_t>(host);
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    std::uintptr_t start = 0;
    std::uintptr_t end = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) == 2) {
      inside = wanted >= start && wanted < end;
    } else if (inside && line.starts_with("VmFlags:")) {
      std::istringstream words(line.substr(8));
      return {std::istream_iterator<std::string>(words), {}};
    }
  }
  return {};
}

// The huge pages of the host's pool that nobody uses or has reserved.
std::uint64_t available_huge_pages() {
  const auto count = [](const char* which) {
    std::ifstream file(std::string("/sys/kernel/mm/hugepages/hugepages-2048kB/") + which);
    std::uint64_t value = 0;
    file >> value;
    return value;
  };
  const std::uint64_t reserved = count("resv_hugepages");
  return std::max(count("free_hugepages"), reserved) - reserved;
}

static_assert(std::is_trivially_copyable_v<MemoryFault>);
static_assert(std::is_nothrow_move_constructible_v<GuestMemory> &&
              !std::is_copy_constructible_v<GuestMemory>);

// ---- every backing ----

// Two ranges with a hole, of one and two huge pages. Cases run side by side, so a pool of kPool pages is
// enough for all that want 3 of them at the same time.
class EachBacking : public testing::TestWithParam<Backing> {
 protected:
  static constexpr std::uint64_t kPool = 16;

  void SetUp() override {
    auto memory = GuestMemory::create(ranges_, GetParam());
    if (!memory && GetParam() == Backing::kHugetlb2M && available_huge_pages() < kPool) {
      std::cout << memory.error().message()
                << "\nTested is only that this is said (HugePages.*). To test the rest: "
                << "sysctl vm.nr_hugepages=" << kPool << '\n';
      GTEST_SKIP() << "fewer than " << kPool << " free huge pages";
    }
    ASSERT_TRUE(memory.has_value()) << memory.error().message();
    memory_ = std::move(*memory);
  }

  const std::vector<GuestRange> ranges_ = {range(0, kHugePage), range(4 * kGiB, 2 * kHugePage)};
  GuestMemory memory_ = memory_of({range(0, kPage)});
};

TEST_P(EachBacking, fresh_memory_is_zero_and_keeps_what_is_written_at_every_end) {
  EXPECT_EQ(memory_.backing(), GetParam());
  EXPECT_EQ(memory_.size(), 3 * kHugePage);
  const auto bytes = pattern(3 * kPage);
  for (const std::uint64_t address :
       {std::uint64_t{0}, kHugePage - bytes.size(), 4 * kGiB, 4 * kGiB + 2 * kHugePage - bytes.size()}) {
    EXPECT_EQ(contents(memory_, address, bytes.size()), std::vector<std::byte>(bytes.size()));
    ASSERT_TRUE(memory_.write(GuestAddress(address), bytes).has_value());
    EXPECT_EQ(contents(memory_, address, bytes.size()), bytes);
  }
}

TEST_P(EachBacking, mappings_are_congruent_to_guest_addresses_and_fenced) {
  ASSERT_EQ(memory_.regions().size(), 2U);
  for (const MemoryRegion& region : memory_.regions()) {
    // SAFETY: for arithmetic on the address only.
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(region.host) % kHugePage,
              region.range.base().value() % kHugePage);
    const auto* start = static_cast<const std::byte*>(region.host);
    EXPECT_TRUE(is_mapped(start));
    EXPECT_TRUE(is_mapped(start + region.range.size() - 1));
    EXPECT_FALSE(is_mapped(start - 1));
    EXPECT_FALSE(is_mapped(start - kHugePage));
    EXPECT_FALSE(is_mapped(start + region.range.size()));
    EXPECT_FALSE(is_mapped(start + region.range.size() + kHugePage - 1));
  }
}

TEST_P(EachBacking, guest_ram_is_mapped_with_the_flags_of_its_backing_and_left_out_of_dumps_and_children) {
  for (const MemoryRegion& region : memory_.regions()) {
    const auto flags = mapping_flags(region.host);
    EXPECT_TRUE(flags.contains("dd"));
    EXPECT_TRUE(flags.contains("dc"));
    EXPECT_EQ(flags.contains("ht"), GetParam() == Backing::kHugetlb2M);
    EXPECT_EQ(flags.contains("hg"), GetParam() == Backing::kTransparentHuge);
    EXPECT_EQ(flags.contains("sh"), region.backing_fd >= 0);
    // Only huge pages are reserved ahead: a fault on one cannot fail for want of pages.
    EXPECT_EQ(flags.contains("nr"), GetParam() != Backing::kHugetlb2M);
  }
}

TEST_P(EachBacking, memory_is_unmapped_and_its_descriptor_closed_when_its_owner_goes) {
  const auto* first = host_of(memory_, 0);
  const auto* second = host_of(memory_, 1);
  const int fd = memory_.regions()[0].backing_fd;
  memory_ = memory_of({range(0, kPage)});
  EXPECT_FALSE(is_mapped(first) && host_of(memory_) != first);
  EXPECT_FALSE(is_mapped(second) && host_of(memory_) != second);
  if (fd >= 0) {
    EXPECT_EQ(::fcntl(fd, F_GETFD), -1);
  }
}

INSTANTIATE_TEST_SUITE_P(Memory, EachBacking,
                         testing::Values(Backing::kAnonymous, Backing::kTransparentHuge, Backing::kMemfd,
                                         Backing::kHugetlb2M),
                         [](const auto& tested) {
                           std::string name(to_string(tested.param));
                           std::replace(name.begin(), name.end(), ' ', '_');
                           return name;
                         });

// ---- creation ----

TEST(GuestMemoryCreate, ranges_that_are_not_ascending_apart_and_page_aligned_are_refused) {
  const std::vector<std::vector<GuestRange>> wrong = {
      {},
      {range(1, kPage)},
      {range(0, kPage + 1)},
      {range(kPage / 2, kPage)},
      {range(0, 2 * kPage), range(kPage, kPage)},
      {range(0, kPage), range(0, kPage)},
      {range(kPage, kPage), range(0, kPage)},
      {range(0, 1ULL << 63), range(1ULL << 63, 1ULL << 63)},
  };
  for (const auto& ranges : wrong) {
    for (const Backing backing : {Backing::kAnonymous, Backing::kMemfd}) {
      const auto memory = GuestMemory::create(ranges, backing);
      ASSERT_FALSE(memory.has_value());
      EXPECT_EQ(memory.error().code(), ErrorCode::kInvalidArgument);
      EXPECT_THAT(memory.error().message(), HasSubstr("guest memory"));
    }
  }
}

TEST(GuestMemoryCreate, more_than_an_address_space_is_exhaustion) {
  for (const Backing backing : {Backing::kAnonymous, Backing::kTransparentHuge, Backing::kMemfd}) {
    for (const std::uint64_t size :
         {std::uint64_t{1} << 60, (std::uint64_t{1} << 63) + kPage, kMax - kPage + 1}) {
      const auto memory = GuestMemory::create(std::vector{range(0, size)}, backing);
      ASSERT_FALSE(memory.has_value()) << size;
      EXPECT_EQ(memory.error().code(), ErrorCode::kExhausted) << memory.error().message();
      EXPECT_THAT(memory.error().message(), HasSubstr(std::to_string(size / kMiB) + " MiB"));
    }
  }
}

TEST(GuestMemoryCreate, a_later_range_that_cannot_be_mapped_leaves_nothing_behind) {
  const std::vector<GuestRange> ranges = {range(0, kMiB), range(kGiB, 1ULL << 60)};
  const auto count_lines = [] {
    std::ifstream maps("/proc/self/maps");
    return std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
  };
  EXPECT_FALSE(
      GuestMemory::create(ranges, Backing::kMemfd).has_value());  // what an allocator maps is mapped now
  const auto before = count_lines();
  for (int i = 0; i < 20; ++i) {
    EXPECT_FALSE(GuestMemory::create(ranges, Backing::kMemfd).has_value());
  }
  EXPECT_LT(count_lines(), before + 10);
}

TEST(GuestMemoryCreate, every_size_from_one_mib_to_64_gib_costs_only_what_is_touched) {
  for (const Backing backing : {Backing::kAnonymous, Backing::kTransparentHuge, Backing::kMemfd}) {
    for (const std::uint64_t size : {kMiB, 128 * kMiB, 3 * kGiB, 4 * kGiB, 64 * kGiB}) {
      GuestMemory memory = memory_of(x86_64::memory_ranges(size).value(), backing);
      EXPECT_EQ(memory.size(), size);
      const MemoryRegion& last = memory.regions().back();
      const std::uint64_t seen =
          std::min(last.range.size(), 512 * kMiB);  // the rest would take mincore() long
      const auto* host = static_cast<const std::byte*>(last.host) + (last.range.size() - seen);
      EXPECT_EQ(resident_pages(host, seen), 0U);
      ASSERT_TRUE(memory.write_object(GuestAddress(last.range.last().value() - 3), 0x12345678U).has_value());
      const std::uint64_t most = backing == Backing::kTransparentHuge ? kHugePage / kPage : 1;
      EXPECT_GE(resident_pages(host, seen), 1U);
      EXPECT_LE(resident_pages(host, seen), most);
    }
  }
}

TEST(GuestMemoryCreate, a_range_at_the_very_end_of_the_address_space_works_to_its_last_byte) {
  GuestMemory memory = memory_of({range(kMax - kPage + 1, kPage)});
  ASSERT_TRUE(memory.write_object(GuestAddress(kMax), std::uint8_t{7}).has_value());
  EXPECT_EQ(memory.read_object<std::uint8_t>(GuestAddress(kMax)).value(), 7);
  EXPECT_FALSE(memory.read_object<std::uint16_t>(GuestAddress(kMax)).has_value());
  EXPECT_FALSE(memory.read_object<std::uint16_t>(GuestAddress(0)).has_value());
  EXPECT_FALSE(memory.slice(GuestAddress(kMax), 2).has_value());
}

TEST(GuestMemoryCreate, a_range_that_starts_amid_a_huge_page_is_mapped_congruent_to_it) {
  const GuestMemory memory = memory_of({range(5 * kPage, kPage), range(kGiB + kHugePage - kPage, 3 * kPage)});
  for (const MemoryRegion& region : memory.regions()) {
    // SAFETY: for arithmetic on the address only.
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(region.host) % kHugePage,
              region.range.base().value() % kHugePage);
  }
}

TEST(GuestMemoryMove, a_move_carries_mappings_and_slices_and_leaves_no_ranges) {
  GuestMemory first = memory_of({range(0, kPage)}, Backing::kMemfd);
  const GuestSlice slice = first.slice(GuestAddress(8), 8).value();
  GuestMemory second = std::move(first);
  // NOLINTBEGIN(bugprone-use-after-move): the moved-from state is what is tested
  EXPECT_TRUE(first.regions().empty());
  EXPECT_FALSE(first.read_object<std::uint8_t>(GuestAddress(0)).has_value());
  // NOLINTEND(bugprone-use-after-move)
  const auto bytes = pattern(8);
  slice.copy_from(bytes);
  EXPECT_EQ(contents(second, 8, 8), bytes);
  first = std::move(second);
  EXPECT_EQ(contents(first, 8, 8), bytes);
}

// ---- memfd ----

TEST(Memfd, another_mapping_of_the_descriptor_sees_the_same_bytes) {
  GuestMemory memory = memory_of({range(0, 2 * kPage), range(kGiB, kPage)}, Backing::kMemfd);
  ASSERT_EQ(memory.regions().size(), 2U);
  EXPECT_EQ(memory.regions()[1].backing_fd, memory.regions()[0].backing_fd);
  EXPECT_EQ(memory.regions()[1].backing_offset, 2 * kPage);
  const auto bytes = pattern(100);
  ASSERT_TRUE(memory.write(GuestAddress(kGiB + 5), bytes).has_value());
  std::vector<std::byte> seen(bytes.size());
  ASSERT_EQ(::pread(memory.regions()[1].backing_fd, seen.data(), seen.size(), 2 * kPage + 5), 100);
  EXPECT_EQ(seen, bytes);
}

TEST(Memfd, its_size_is_sealed_and_it_is_closed_on_exec) {
  const GuestMemory memory = memory_of({range(0, 2 * kPage)}, Backing::kMemfd);
  const int fd = memory.regions()[0].backing_fd;
  EXPECT_EQ(::ftruncate(fd, kPage), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::ftruncate(fd, 3 * kPage), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
}

TEST(Memfd, a_size_past_the_file_size_limit_is_an_error_and_not_a_signal) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit limited = before;
  limited.rlim_cur = 16 * kMiB;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limited), 0);
  const auto fits = GuestMemory::create(std::vector{range(0, 16 * kMiB)}, Backing::kMemfd);
  const auto exceeds = GuestMemory::create(std::vector{range(0, 16 * kMiB + kPage)}, Backing::kMemfd);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_TRUE(fits.has_value());
  ASSERT_FALSE(exceeds.has_value());
  EXPECT_EQ(exceeds.error().code(), ErrorCode::kExhausted);
  EXPECT_THAT(exceeds.error().message(), HasSubstr("RLIMIT_FSIZE"));
}

// ---- huge pages ----

TEST(HugePages, ranges_that_are_not_of_whole_huge_pages_are_refused) {
  for (const GuestRange& wrong : {range(0, kHugePage + kPage), range(kPage, kHugePage), range(0, kMiB)}) {
    const auto memory = GuestMemory::create(std::vector{wrong}, Backing::kHugetlb2M);
    ASSERT_FALSE(memory.has_value());
    EXPECT_EQ(memory.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(memory.error().message(), HasSubstr("2097152"));
  }
}

TEST(HugePages, a_pool_that_is_too_small_is_an_error_at_creation_that_says_what_to_do) {
  const std::uint64_t pages = available_huge_pages() + 1'000'000;  // 2 TiB more than there are
  const auto memory = GuestMemory::create(
      std::vector{range(0, kHugePage), range(4 * kGiB, (pages - 1) * kHugePage)}, Backing::kHugetlb2M);
  ASSERT_FALSE(memory.has_value());
  if (memory.error().code() == ErrorCode::kUnsupported) {
    EXPECT_THAT(memory.error().message(), HasSubstr("this host has no such pages"));
  } else {
    EXPECT_EQ(memory.error().code(), ErrorCode::kExhausted);
    EXPECT_THAT(memory.error().message(), HasSubstr(std::to_string(pages) + " pages of 2 MiB needed, "));
    EXPECT_THAT(memory.error().message(), HasSubstr("sysctl vm.nr_hugepages="));
  }
}

// ---- hosts that lack something ----

// What a host refuses: `call` with `error`, where its argument number `argument` has the bits `value` under
// `mask`.
struct Refusal {
  std::uint32_t call;
  std::uint32_t argument;
  std::uint32_t mask;
  std::uint32_t value;
  std::uint32_t error;
};

// The outcome of creating memory where the host refuses that. A filter of system calls holds for the thread
// that loads it and needs no privilege, so a thread of its own plays the host.
Result<GuestMemory> create_where_refused(const Refusal& refusal, Backing backing) {
  std::optional<Result<GuestMemory>> outcome;
  std::thread host([&] {
    std::array<sock_filter, 7> program = {{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refusal.call, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 static_cast<std::uint32_t>(offsetof(seccomp_data, args)) + refusal.argument * 8),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, refusal.mask),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refusal.value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | refusal.error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    }};
    const sock_fprog loaded = {static_cast<unsigned short>(program.size()), program.data()};
    ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &loaded), 0);
    outcome = GuestMemory::create(std::vector{range(0, kHugePage)}, backing);
  });
  host.join();
  return outcome ? std::move(*outcome) : fail(ErrorCode::kInternal, "the filter was not loaded");
}

TEST(PoorHost, a_kernel_that_does_not_know_the_newest_memfd_flag_serves_as_well) {
  auto memory = create_where_refused({SYS_memfd_create, 1, 0x8, 0x8, EINVAL}, Backing::kMemfd);
  ASSERT_TRUE(memory.has_value()) << memory.error().message();
  EXPECT_TRUE(memory->write_object(GuestAddress(0), 1).has_value());
}

TEST(PoorHost, what_is_missing_is_unsupported_and_named) {
  const auto no_huge =
      create_where_refused({SYS_memfd_create, 1, MFD_HUGETLB, MFD_HUGETLB, ENODEV}, Backing::kHugetlb2M);
  ASSERT_FALSE(no_huge.has_value());
  EXPECT_EQ(no_huge.error().code(), ErrorCode::kUnsupported);
  EXPECT_EQ(no_huge.error().message(), "guest memory in 2 MiB huge pages: this host has no such pages");
  const auto no_thp =
      create_where_refused({SYS_madvise, 2, ~0U, MADV_HUGEPAGE, EINVAL}, Backing::kTransparentHuge);
  ASSERT_FALSE(no_thp.has_value());
  EXPECT_EQ(no_thp.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(no_thp.error().message(), HasSubstr("this host's kernel is built without them"));
}

TEST(PoorHost, every_other_refusal_is_named_with_its_cause) {
  const std::vector<std::tuple<Refusal, Backing, std::string>> cases = {
      {{SYS_memfd_create, 1, 0, 0, EMFILE},
       Backing::kMemfd,
       "create a memfd for guest memory: Too many open files (EMFILE)"},
      {{SYS_ftruncate, 0, 0, 0, ENOSPC},
       Backing::kMemfd,
       "size a memfd for 2 MiB of guest memory: No space left on device (ENOSPC)"},
      {{SYS_fcntl, 1, ~0U, F_ADD_SEALS, EPERM},
       Backing::kMemfd,
       "seal the memfd of guest memory: Operation not permitted (EPERM)"},
      {{SYS_madvise, 2, ~0U, MADV_DONTDUMP, EPERM},
       Backing::kAnonymous,
       "keep guest memory from core dumps and children: Operation not permitted (EPERM)"},
      {{SYS_madvise, 2, ~0U, MADV_HUGEPAGE, ENOMEM},
       Backing::kTransparentHuge,
       "ask for transparent huge pages for guest memory: Cannot allocate memory (ENOMEM)"},
      {{SYS_mmap, 3, MAP_SHARED | MAP_FIXED, MAP_SHARED | MAP_FIXED, ENOMEM},
       Backing::kMemfd,
       "map 2 MiB of guest memory (limited by vm.overcommit_memory): Cannot allocate memory (ENOMEM)"},
  };
  // (A sanitizer's own mappings are private: mmap is refused for shared ones only.)
  for (const auto& [refusal, backing, message] : cases) {
    const auto memory = create_where_refused(refusal, backing);
    ASSERT_FALSE(memory.has_value()) << message;
    EXPECT_EQ(memory.error().message(), message);
  }
}

// ---- checked access ----

// Two adjacent ranges, a hole, a third range.
class Access : public testing::Test {
 protected:
  static constexpr std::uint64_t kThird = 8 * kPage;

  // Whether every kind of access accepts [address, address + length), which all must agree on.
  bool accepted(std::uint64_t address, std::uint64_t length) {
    const GuestAddress at(address);
    const bool sliced = memory_.slice(at, length).has_value();
    if (const auto whole = GuestRange::make(at, length)) {
      EXPECT_EQ(memory_.contains(*whole), sliced);
    }
    if (length <= 4 * kPage) {
      std::vector<std::byte> bytes(length);
      EXPECT_EQ(memory_.read(at, bytes).has_value(), sliced);
      EXPECT_EQ(memory_.write(at, bytes).has_value(), sliced);
    }
    EXPECT_EQ(memory_.fill(at, length, std::byte{0}).has_value(), sliced);
    return sliced;
  }

  GuestMemory memory_ = memory_of({range(0, 2 * kPage), range(2 * kPage, kPage), range(kThird, 2 * kPage)});
};

TEST_F(Access, every_access_around_every_border_must_lie_in_one_range) {
  const std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges = {
      {0, 2 * kPage}, {2 * kPage, 3 * kPage}, {kThird, kThird + 2 * kPage}};
  for (const std::uint64_t border : {std::uint64_t{0}, 2 * kPage, 3 * kPage, kThird, kThird + 2 * kPage}) {
    for (std::uint64_t first = border < 9 ? 0 : border - 9; first <= border + 9; ++first) {
      for (std::uint64_t length = 1; length <= 20; ++length) {
        const bool inside = std::any_of(ranges.begin(), ranges.end(), [&](const auto& r) {
          return first >= r.first && first + length <= r.second;
        });
        ASSERT_EQ(accepted(first, length), inside) << first << " " << length;
      }
    }
  }
}

TEST_F(Access, lengths_that_wrap_or_exceed_the_range_are_refused) {
  for (const std::uint64_t address :
       {std::uint64_t{0}, std::uint64_t{1}, 2 * kPage, kThird, kThird + kPage, kMax}) {
    for (const std::uint64_t length :
         {2 * kPage + 1, std::uint64_t{1} << 32, std::uint64_t{1} << 63, kMax - kThird, kMax - 1, kMax}) {
      EXPECT_FALSE(accepted(address, length)) << address << " " << length;
    }
  }
  EXPECT_FALSE(accepted(kMax, 1));
  EXPECT_FALSE(accepted(kMax, 2));
}

TEST_F(Access, nothing_is_copied_anywhere_and_a_slice_of_nothing_is_refused) {
  for (const std::uint64_t address : {std::uint64_t{0}, 3 * kPage, kMax}) {
    EXPECT_TRUE(memory_.read(GuestAddress(address), {}).has_value());
    EXPECT_TRUE(memory_.write(GuestAddress(address), {}).has_value());
    EXPECT_TRUE(memory_.fill(GuestAddress(address), 0, std::byte{1}).has_value());
    const auto slice = memory_.slice(GuestAddress(address), 0);
    ASSERT_FALSE(slice.has_value());
    EXPECT_EQ(slice.error().address, GuestAddress(address));
    EXPECT_EQ(slice.error().length, 0U);
  }
}

TEST_F(Access, a_refused_access_does_nothing_and_names_itself) {
  const auto bytes = pattern(2 * kPage);
  ASSERT_TRUE(memory_.write(GuestAddress(kThird), bytes).has_value());
  const auto refused = memory_.write(GuestAddress(kThird + kPage), std::vector<std::byte>(kPage + 1));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().address, GuestAddress(kThird + kPage));
  EXPECT_EQ(refused.error().length, kPage + 1);
  EXPECT_EQ(refused.error().to_error().code(), ErrorCode::kOutOfRange);
  EXPECT_EQ(refused.error().to_error().message(),
            "guest address 0x9000, 4097 bytes: not within one range of guest memory");
  EXPECT_FALSE(memory_.fill(GuestAddress(kThird + kPage), kPage + 1, std::byte{0}).has_value());
  EXPECT_EQ(contents(memory_, kThird, 2 * kPage), bytes);

  std::vector<std::byte> untouched = pattern(kPage + 1, 9);
  EXPECT_FALSE(memory_.read(GuestAddress(kThird + kPage), untouched).has_value());
  EXPECT_EQ(untouched, pattern(kPage + 1, 9));
}

TEST_F(Access, objects_are_copied_at_any_alignment) {
  struct Thing {
    std::uint64_t a;
    std::uint32_t b;
    std::uint32_t c;
  };
  for (std::uint64_t address = kThird; address < kThird + 20; ++address) {
    ASSERT_TRUE(memory_.write_object(GuestAddress(address), Thing{address, 2, 3}).has_value());
    const Thing seen = memory_.read_object<Thing>(GuestAddress(address)).value();
    EXPECT_EQ(std::tie(seen.a, seen.b, seen.c), std::make_tuple(address, 2U, 3U));
  }
  EXPECT_FALSE(memory_.read_object<Thing>(GuestAddress(kThird + 2 * kPage - 15)).has_value());
  EXPECT_FALSE(memory_.write_object(GuestAddress(3 * kPage - 8), Thing{}).has_value());
}

// Every length and alignment of a copy, against vectors; bytes around it must stay as they are.
TEST_F(Access, copies_and_fills_of_every_length_and_alignment_touch_exactly_their_bytes) {
  constexpr std::size_t kFrame = 256;
  const auto fresh = pattern(kFrame, 99);
  for (std::size_t alignment = 0; alignment < 17; ++alignment) {
    for (std::size_t length = 0; length <= 200; ++length) {
      const GuestAddress at(kThird + alignment);
      const auto data = pattern(length, static_cast<unsigned int>(length));

      auto expected = fresh;
      ASSERT_TRUE(memory_.write(GuestAddress(kThird), fresh).has_value());
      ASSERT_TRUE(memory_.write(at, data).has_value());
      std::copy(data.begin(), data.end(), expected.begin() + static_cast<std::ptrdiff_t>(alignment));
      ASSERT_EQ(contents(memory_, kThird, kFrame), expected) << "write " << alignment << " " << length;

      std::vector<std::byte> seen = fresh;  // reading into the middle of a frame of ours
      ASSERT_TRUE(memory_.read(at, std::span(seen).subspan(16 - alignment % 16, length)).has_value());
      auto framed = fresh;
      std::copy(data.begin(), data.end(), framed.begin() + static_cast<std::ptrdiff_t>(16 - alignment % 16));
      ASSERT_EQ(seen, framed) << "read " << alignment << " " << length;

      ASSERT_TRUE(memory_.fill(at, length, std::byte{0x5a}).has_value());
      std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(alignment), length, std::byte{0x5a});
      ASSERT_EQ(contents(memory_, kThird, kFrame), expected) << "fill " << alignment << " " << length;
    }
  }
}

template <typename T>
class OrderedAccess : public testing::Test {};
using Integers = testing::Types<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t,
                                std::int32_t, std::uint64_t, std::int64_t>;
TYPED_TEST_SUITE(OrderedAccess, Integers);

TYPED_TEST(OrderedAccess, aligned_integers_of_a_slice_are_little_endian) {
  GuestMemory memory = memory_of({range(kPage, kPage)});
  const GuestSlice slice = memory.slice(GuestAddress(2 * kPage - 16), 16).value();
  const auto value = static_cast<TypeParam>(0x8192a3b4c5d6e7f8ULL);
  for (std::size_t offset = 0; offset + sizeof(TypeParam) <= slice.size(); offset += sizeof(TypeParam)) {
    slice.store<TypeParam>(offset, value);
    EXPECT_EQ(slice.load<TypeParam>(offset), value);
    EXPECT_EQ(contents(memory, 2 * kPage - 16 + offset, 1)[0], static_cast<std::byte>(value & 0xff));
  }
}

TEST_F(Access, a_misaligned_integer_or_one_past_the_slice_is_a_bug) {
  const GuestSlice slice = memory_.slice(GuestAddress(kThird + 2), 10).value();
  EXPECT_DEATH(std::ignore = slice.load<std::uint32_t>(0), "not aligned");
  EXPECT_DEATH(slice.store<std::uint32_t>(0, 1), "not aligned");
  EXPECT_DEATH(std::ignore = slice.load<std::uint64_t>(6), "reaches past its slice");
  slice.store<std::uint32_t>(2, 7);
  EXPECT_EQ(slice.load<std::uint32_t>(2), 7U);
}

// ---- slices ----

TEST_F(Access, a_slice_copies_from_its_start_both_ways) {
  const GuestSlice slice = memory_.slice(GuestAddress(kThird + 10), 100).value();
  EXPECT_EQ(slice.size(), 100U);
  EXPECT_EQ(slice.address(), GuestAddress(kThird + 10));
  const auto bytes = pattern(60);
  slice.copy_from(bytes);
  EXPECT_EQ(contents(memory_, kThird + 10, 60), bytes);
  EXPECT_EQ(contents(memory_, kThird + 70, 40), std::vector<std::byte>(40));
  std::vector<std::byte> seen(100);
  slice.copy_to(seen);
  EXPECT_EQ(seen, contents(memory_, kThird + 10, 100));
}

TEST_F(Access, a_slice_serves_a_system_call_both_ways) {
  const auto bytes = pattern(300);
  const UniqueFd file = file_of(bytes);
  const std::array<iovec, 2> vectors = {
      memory_.slice(GuestAddress(3 * kPage - 100), 100).value().for_system_call(),
      memory_.slice(GuestAddress(kThird), 200).value().for_system_call()};
  ASSERT_EQ(::preadv(file.get(), vectors.data(), 2, 0), 300);
  auto seen = contents(memory_, 3 * kPage - 100, 100);
  const auto rest = contents(memory_, kThird, 200);
  seen.insert(seen.end(), rest.begin(), rest.end());
  EXPECT_EQ(seen, bytes);

  ASSERT_TRUE(memory_.fill(GuestAddress(kThird), 200, std::byte{0xee}).has_value());
  ASSERT_EQ(::pwritev(file.get(), vectors.data(), 2, 0), 300);
  std::vector<std::byte> written(300);
  ASSERT_EQ(::pread(file.get(), written.data(), 300, 0), 300);
  EXPECT_EQ(written[99], bytes[99]);
  EXPECT_EQ(written[100], std::byte{0xee});
  EXPECT_EQ(written[299], std::byte{0xee});
}

TEST_F(Access, a_copy_longer_than_its_slice_aborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::vector<std::byte> bytes(11);
  const GuestSlice slice = memory_.slice(GuestAddress(kThird), 10).value();
  EXPECT_DEATH(slice.copy_to(bytes), "stays within it");
  EXPECT_DEATH(slice.copy_from(bytes), "stays within it");
}

// ---- a guest that writes meanwhile ----

// A second thread plays a vCPU: it rewrites the bytes that this one copies, by every way of writing there is.
// Each byte that is read must be one that was written, a local copy must not change after it was made, and
// ThreadSanitizer must have nothing to say.
TEST(RacingGuest, copies_made_while_the_guest_writes_hold_only_bytes_that_were_written) {
  constexpr std::size_t kSize = 1000;
  GuestMemory memory = memory_of({range(0, kPage)});
  std::atomic<bool> stop = false;
  std::thread guest([&memory, &stop] {
    const std::vector<std::byte> ones(kSize, std::byte{0x11});
    const GuestSlice slice = memory.slice(GuestAddress(0), kSize).value();
    while (!stop.load(std::memory_order_relaxed)) {
      std::ignore = memory.write(GuestAddress(0), ones);
      std::ignore = memory.fill(GuestAddress(0), kSize, std::byte{0});
      slice.copy_from(ones);
      slice.store<std::uint64_t>(8, 0);
      std::ignore = memory.write_object(GuestAddress(16), std::array<std::uint32_t, 3>{});
    }
  });
  const auto valid = [](std::span<const std::byte> bytes) {
    return std::all_of(bytes.begin(), bytes.end(),
                       [](std::byte b) { return b == std::byte{0} || b == std::byte{0x11}; });
  };
  std::vector<std::byte> copy(kSize);
  const GuestSlice slice = memory.slice(GuestAddress(0), kSize).value();
  for (int i = 0; i < 2000; ++i) {
    ASSERT_TRUE(memory.read(GuestAddress(0), copy).has_value());
    const auto again = copy;
    ASSERT_TRUE(valid(copy));
    ASSERT_EQ(copy, again);
    slice.copy_to(copy);
    ASSERT_TRUE(valid(copy));
    const auto object = memory.read_object<std::array<std::byte, 24>>(GuestAddress(3)).value();
    ASSERT_TRUE(valid(object));
    const auto word = slice.load<std::uint16_t>(8);
    ASSERT_TRUE(word == 0 || word == 0x1111) << word;
  }
  stop = true;
  guest.join();
}

// What was written before a store() is there for whoever has seen it by load(): a ring.
TEST(RacingGuest, data_published_by_a_store_is_seen_after_the_load) {
  GuestMemory memory = memory_of({range(0, kPage)});
  constexpr std::uint16_t kRounds = 5000;
  constexpr std::size_t kIndex = 64;
  constexpr std::size_t kTaken = 128;
  const GuestSlice ring = memory.slice(GuestAddress(0), kPage).value();
  std::thread guest([&memory, &ring] {
    for (std::uint16_t round = 1; round <= kRounds; ++round) {
      std::ignore =
          memory.write_object(GuestAddress(0), std::array<std::uint16_t, 8>{round, 0, 0, 0, 0, 0, 0, round});
      ring.store<std::uint16_t>(kIndex, round);
      while (ring.load<std::uint16_t>(kTaken) != round) {
        std::this_thread::yield();
      }
    }
  });
  for (std::uint16_t round = 1; round <= kRounds; ++round) {
    while (ring.load<std::uint16_t>(kIndex) != round) {
      std::this_thread::yield();
    }
    const auto seen = memory.read_object<std::array<std::uint16_t, 8>>(GuestAddress(0)).value();
    EXPECT_EQ(seen[0], round);
    EXPECT_EQ(seen[7], round);
    ring.store<std::uint16_t>(kTaken, round);
  }
  guest.join();
}

// ---- files ----

class Files : public Access {
 protected:
  std::vector<std::byte> bytes_ = pattern(3 * kPage + 123);
  UniqueFd file_ = file_of(bytes_);

  void expect_error(const Result<void>& result, ErrorCode code, const std::string& message) {
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().code(), code);
    EXPECT_EQ(result.error().message(), message);
  }
};

TEST_F(Files, a_stretch_of_a_file_is_loaded_to_where_it_is_wanted) {
  ASSERT_TRUE(memory_.load_file(GuestAddress(kThird + 5), file_, 1000, kPage, "kernel image").has_value());
  EXPECT_EQ(contents(memory_, kThird + 5, kPage),
            std::vector<std::byte>(bytes_.begin() + 1000, bytes_.begin() + 1000 + kPage));
  EXPECT_EQ(contents(memory_, kThird, 5), std::vector<std::byte>(5));
  EXPECT_EQ(contents(memory_, kThird + 5 + kPage, 5), std::vector<std::byte>(5));
}

TEST_F(Files, a_file_that_ends_early_is_an_invalid_image) {
  const std::uint64_t end = bytes_.size();
  expect_error(memory_.load_file(GuestAddress(0), file_, end - 10, 30, "initrd"), ErrorCode::kInvalidImage,
               "initrd: ends at byte 12411, 20 bytes before the end of what it should hold");
  EXPECT_TRUE(memory_.load_file(GuestAddress(0), file_, end - 10, 10, "initrd").has_value());
}

TEST_F(Files, a_destination_outside_one_range_is_refused) {
  for (const std::uint64_t address : {3 * kPage, kPage, kThird + kPage, kMax - kPage + 1}) {
    const auto result = memory_.load_file(GuestAddress(address), file_, 0, kPage + 1, "kernel image");
    ASSERT_FALSE(result.has_value()) << address;
    EXPECT_EQ(result.error().code(), ErrorCode::kOutOfRange);
    EXPECT_THAT(result.error().message(), HasSubstr("kernel image: guest address 0x"));
  }
}

TEST_F(Files, offsets_that_no_file_can_have_are_an_invalid_image) {
  for (const std::uint64_t offset :
       {std::uint64_t{1} << 63, (std::uint64_t{1} << 63) - kPage, kMax - kPage + 1}) {
    const auto result = memory_.load_file(GuestAddress(kThird), file_, offset, kPage + 1, "kernel image");
    ASSERT_FALSE(result.has_value()) << offset;
    EXPECT_EQ(result.error().code(), ErrorCode::kInvalidImage) << result.error().message();
  }
}

TEST_F(Files, nothing_to_load_succeeds_anywhere) {
  EXPECT_TRUE(memory_.load_file(GuestAddress(kMax), file_, kMax, 0, "initrd").has_value());
}

TEST_F(Files, what_cannot_be_read_is_named_with_its_cause) {
  const UniqueFd directory = open_file("/", O_RDONLY | O_DIRECTORY, "directory").value();
  expect_error(memory_.load_file(GuestAddress(0), directory, 0, 10, "kernel image"), ErrorCode::kIo,
               "read kernel image: Is a directory (EISDIR)");
  const UniqueFd closed;
  expect_error(memory_.load_file(GuestAddress(0), closed, 0, 10, "kernel image"), ErrorCode::kIo,
               "read kernel image: Bad file descriptor (EBADF)");
}

}  // namespace
}  // namespace mayfly
