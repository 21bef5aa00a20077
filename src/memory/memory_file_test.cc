#include "memory/memory_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/crash.h"
#include "base/file.h"
#include "support/poor_host.h"
#include "support/temp_dir.h"

namespace mayfly {

// How GoogleTest names the parameter of a case.
// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for this name
static void PrintTo(Backing backing, std::ostream* out) {
  *out << to_string(backing);
}

namespace {

using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMiB = 1ULL << 20;

// Two regions with a hole between them, whose ends share no word of a bitmap.
std::vector<GuestRange> two_ranges(std::uint64_t first = 300 * kPage, std::uint64_t second = 212 * kPage) {
  return {GuestRange::make(GuestAddress(0), first).value(),
          GuestRange::make(GuestAddress(1ULL << 32), second).value()};
}

UniqueFd empty_file() {
  return UniqueFd(::memfd_create("memory_file", MFD_CLOEXEC));
}

NamedFile named(const UniqueFd& fd) {
  return {fd, "memory file /m"};
}

Bytes bytes_of(const UniqueFd& file, std::uint64_t size) {
  Bytes bytes(size);
  EXPECT_EQ(read_at(file, 0, {bytes.data(), size}, "memory file").value(), size);
  struct stat stat {};
  EXPECT_EQ(::fstat(file.get(), &stat), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(stat.st_size), size);
  return bytes;
}

std::uint64_t bytes_on_disk(const UniqueFd& file) {
  struct stat stat {};
  EXPECT_EQ(::fstat(file.get(), &stat), 0);
  return static_cast<std::uint64_t>(stat.st_blocks) * 512;
}

// All of RAM, its regions one behind the other.
Bytes bytes_of(const GuestMemory& memory) {
  Bytes bytes(memory.size());
  for (const MemoryRegion& region : memory.regions()) {
    EXPECT_TRUE(memory.read(region.range.base(),
                            std::span(bytes).subspan(region.backing_offset, region.range.size())));
  }
  return bytes;
}

PageSet all_pages(const GuestMemory& memory) {
  PageSet pages = no_pages(memory);
  for (std::size_t region = 0; region < pages.size(); ++region) {
    for (std::uint64_t page = 0; page < memory.regions()[region].range.size() / kPage; ++page) {
      pages[region][page / 64] |= 1ULL << (page % 64);
    }
  }
  return pages;
}

// Pages of RAM in this process's page tables.
std::uint64_t resident(const GuestMemory& memory) {
  const UniqueFd map = open_file("/proc/self/pagemap", O_RDONLY, "page map").value();
  std::uint64_t count = 0;
  for (const MemoryRegion& region : memory.regions()) {
    std::vector<std::uint64_t> entries(region.range.size() / kPage);
    // SAFETY: the number alone.
    const std::uint64_t first = reinterpret_cast<std::uintptr_t>(region.host) / kPage;
    EXPECT_EQ(read_at(map, first * 8, {entries.data(), entries.size() * 8}, "page map").value(),
              entries.size() * 8);
    count += static_cast<std::uint64_t>(
        std::count_if(entries.begin(), entries.end(), [](std::uint64_t entry) { return entry >> 62 != 0; }));
  }
  return count;
}

// A guest that does as it likes, and what its memory must be.
class Guest {
 public:
  // Of memory that holds `model`, or else zeros. Touches nothing.
  Guest(GuestMemory memory, unsigned int seed, Bytes model = {})
      : memory_(std::move(memory)), model_(std::move(model)), dirty_(no_pages(memory_)), random_(seed) {
    model_.resize(memory_.size());
  }

  // Runs of pages: written, cleared, read, or a few bytes changed.
  void run(int steps) {
    for (int step = 0; step < steps; ++step) {
      const std::size_t index = random_() % memory_.regions().size();
      const MemoryRegion& region = memory_.regions()[index];
      const std::uint64_t pages = region.range.size() / kPage;
      const std::uint64_t first = random_() % pages;
      const std::uint64_t count = std::min<std::uint64_t>(pages - first, 1 + random_() % 9);
      switch (random_() % 5) {
        case 0:
        case 1: {
          Bytes bytes(count * kPage);
          std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random_()); });
          write(index, first * kPage, bytes);
          break;
        }
        case 2:
          write(index, first * kPage, Bytes(count * kPage));
          break;
        case 3: {
          Bytes seen(count * kPage);
          EXPECT_TRUE(memory_.read(*region.range.base().checked_add(first * kPage), seen));
          break;
        }
        default:
          write(index, first * kPage + random_() % kPage, Bytes(1, static_cast<std::byte>(random_())));
      }
    }
  }

  void write(std::size_t index, std::uint64_t offset, const Bytes& bytes) {
    const MemoryRegion& region = memory_.regions()[index];
    ASSERT_TRUE(memory_.write(*region.range.base().checked_add(offset), bytes));
    std::copy(bytes.begin(), bytes.end(),
              model_.begin() + static_cast<std::ptrdiff_t>(region.backing_offset + offset));
    for (std::uint64_t page = offset / kPage; page <= (offset + bytes.size() - 1) / kPage; ++page) {
      dirty_[index][page / 64] |= 1ULL << (page % 64);
    }
  }

  PageSet take_dirty() { return std::exchange(dirty_, no_pages(memory_)); }
  const GuestMemory& memory() const { return memory_; }
  const Bytes& model() const { return model_; }

 private:
  GuestMemory memory_;
  Bytes model_;
  PageSet dirty_;
  std::mt19937 random_;
};

// Pages of the model that are not zeros.
std::uint64_t nonzero_pages(const Bytes& model) {
  std::uint64_t count = 0;
  for (std::size_t at = 0; at < model.size(); at += kPage) {
    const auto page = std::span(model).subspan(at, kPage);
    count += std::any_of(page.begin(), page.end(), [](std::byte b) { return b != std::byte{0}; }) ? 1U : 0U;
  }
  return count;
}

class EveryBacking : public ::testing::TestWithParam<Backing> {
 protected:
  // A guest whose RAM is not empty where it comes from a file.
  static Guest make(unsigned int seed) {
    if (GetParam() != Backing::kPrivateFile) {
      return {GuestMemory::create(two_ranges(), GetParam()).value(), seed};
    }
    Guest first(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), seed + 1000);
    first.run(40);
    UniqueFd file = empty_file();
    EXPECT_TRUE(write_full(first.memory(), named(file), {}));
    return {load_memory_file(two_ranges(), Backing::kAnonymous, std::move(file), "memory file").value(), seed,
            first.model()};
  }

  const PageMap pages_ = PageMap::open().value();
};
INSTANTIATE_TEST_SUITE_P(MemoryFile, EveryBacking,
                         ::testing::Values(Backing::kAnonymous, Backing::kTransparentHuge, Backing::kMemfd,
                                           Backing::kPrivateFile));

TEST_P(EveryBacking, a_full_file_is_the_guests_ram_and_its_zeros_are_holes) {
  for (unsigned int seed = 1; seed <= 6; ++seed) {
    Guest guest = make(seed);
    guest.run(25);
    for (const PageMap* pages : {&pages_, static_cast<const PageMap*>(nullptr)}) {
      const UniqueFd file = empty_file();
      const auto written = write_full(guest.memory(), named(file), {.pages = pages});
      ASSERT_TRUE(written) << written.error().message();
      ASSERT_EQ(bytes_of(file, guest.memory().size()), guest.model()) << "seed " << seed;
      EXPECT_EQ(written->written, nonzero_pages(guest.model()) * kPage);
      EXPECT_EQ(bytes_on_disk(file), written->written);
      EXPECT_EQ(written->written + written->zero + written->untouched, guest.memory().size());
    }
  }
}

TEST_P(EveryBacking, a_kernel_without_the_scan_serves_as_well) {
  Guest guest = make(8);
  guest.run(30);
  testing::where_refused(SYS_ioctl, ENOTTY, [&] {
    const UniqueFd file = empty_file();
    ASSERT_TRUE(write_full(guest.memory(), named(file), {.pages = &pages_}));
    EXPECT_EQ(bytes_of(file, guest.memory().size()), guest.model());
    EXPECT_EQ(bytes_on_disk(file), nonzero_pages(guest.model()) * kPage);
    if (GetParam() == Backing::kPrivateFile) {
      EXPECT_EQ(find_written_pages(guest.memory(), pages_).value(), guest.take_dirty());
    }
  });
}

// More runs of pages than the kernel tells, and entries than are read, in one call.
TEST_P(EveryBacking, memory_of_a_thousand_pieces_is_written_whole) {
  const auto ranges = two_ranges(9000 * kPage, 5000 * kPage);
  UniqueFd zeros = empty_file();
  ASSERT_EQ(::ftruncate(zeros.get(), 14'000 * kPage), 0);
  Guest guest(GetParam() == Backing::kPrivateFile
                  ? GuestMemory::map_file(ranges, std::move(zeros), "memory file").value()
                  : GuestMemory::create(ranges, GetParam()).value(),
              1);
  for (std::uint64_t page = 0; page < 9000; page += 3) {
    guest.write(0, page * kPage + 17, Bytes(1, std::byte{5}));
  }
  guest.write(1, 4999 * kPage, Bytes(kPage, std::byte{9}));
  const auto check = [&](const PageMap* pages) {
    const UniqueFd file = empty_file();
    ASSERT_TRUE(write_full(guest.memory(), named(file), {.pages = pages}));
    EXPECT_EQ(bytes_of(file, guest.memory().size()), guest.model());
    EXPECT_EQ(bytes_on_disk(file), 3001 * kPage);
  };
  check(&pages_);
  testing::where_refused(SYS_ioctl, ENOTTY, [&] { check(&pages_); });
  check(nullptr);
}

TEST_P(EveryBacking, in_a_jail_untouched_pages_are_known_but_where_the_host_may_have_swap) {
  Guest guest = make(12);
  guest.write(0, 7 * kPage, Bytes(kPage, std::byte{1}));
  const auto untouched = [&] {
    const UniqueFd file = empty_file();
    const auto written = write_full(guest.memory(), named(file), {});
    EXPECT_TRUE(written) << written.error().message();
    EXPECT_EQ(bytes_of(file, guest.memory().size()), guest.model());
    return written->untouched;
  };
  struct sysinfo host {};
  ASSERT_EQ(::sysinfo(&host), 0);
  if (host.totalswap == 0) {
    const std::uint64_t before = resident(guest.memory());
    EXPECT_GE(untouched(), 200 * kPage);
    if (GetParam() != Backing::kPrivateFile) {  // of which more is in memory than this guest has touched
      EXPECT_EQ(resident(guest.memory()), before);
    }
  }
  for (const int call : {SYS_sysinfo, SYS_mincore}) {
    testing::where_refused(static_cast<std::uint32_t>(call), ENOSYS, [&] {
      // A file tells its holes by itself.
      EXPECT_EQ(untouched() == 0, GetParam() != Backing::kMemfd);
    });
  }
}

TEST_P(EveryBacking, untouched_pages_stay_so) {
  Guest guest = make(1);
  guest.write(0, 7 * kPage, Bytes(kPage, std::byte{1}));
  const std::uint64_t before = resident(guest.memory());
  const UniqueFd file = empty_file();
  ASSERT_TRUE(write_full(guest.memory(), named(file), {.pages = &pages_}));
  EXPECT_LT(before, 512U);
  EXPECT_EQ(resident(guest.memory()), before);
}

TEST_P(EveryBacking, ten_diffs_give_the_memory_again_by_every_way) {
  const testing::TempDir dir;
  Guest guest = make(9);
  guest.run(30);
  guest.take_dirty();
  UniqueFd base = empty_file();
  ASSERT_TRUE(write_full(guest.memory(), named(base), {.pages = &pages_}));
  UniqueFd merged = empty_file();
  ASSERT_TRUE(copy_memory_file(named(base), named(merged), {}));
  const UniqueFd onto = open_file(dir.file("onto"), O_RDWR | O_CREAT, "memory file").value();
  ASSERT_TRUE(copy_memory_file(named(base), named(onto), {}));
  for (int diff = 0; diff < 10; ++diff) {
    guest.run(6);
    const PageSet dirty = guest.take_dirty();
    // Written over a copy of the one before.
    UniqueFd next = empty_file();
    ASSERT_TRUE(copy_memory_file(named(merged), named(next), {}));
    ASSERT_TRUE(write_over(guest.memory(), dirty, named(next), {}));
    merged = std::move(next);
    // And as a file of its own, on a disk, applied to the base.
    const UniqueFd own = open_file(dir.file("diff" + std::to_string(diff)), O_RDWR | O_CREAT, "diff").value();
    const auto written = write_diff(guest.memory(), dirty, named(own), {});
    ASSERT_TRUE(written) << written.error().message();
    EXPECT_EQ(written->written, count_pages(dirty) * kPage);
    ASSERT_TRUE(apply_diff(named(own), named(onto), {}));
    ASSERT_EQ(bytes_of(merged, guest.memory().size()), guest.model()) << diff;
    ASSERT_EQ(bytes_of(onto, guest.memory().size()), guest.model()) << diff;
    EXPECT_EQ(bytes_on_disk(merged), nonzero_pages(guest.model()) * kPage);
  }
  for (const Backing backing : {Backing::kAnonymous, Backing::kTransparentHuge, Backing::kMemfd}) {
    UniqueFd file(::fcntl(merged.get(), F_DUPFD_CLOEXEC, 0));
    const auto loaded = load_memory_file(two_ranges(), backing, std::move(file), "memory file");
    ASSERT_TRUE(loaded) << loaded.error().message();
    EXPECT_EQ(bytes_of(*loaded), guest.model());
  }
}

TEST_P(EveryBacking, memory_that_a_handler_serves_is_read_whole) {
  Guest guest = make(3);
  guest.run(20);
  const UniqueFd file = empty_file();
  const auto written = write_full(guest.memory(), named(file), {.pages = &pages_, .served_by_handler = true});
  ASSERT_TRUE(written);
  EXPECT_EQ(written->untouched, 0U);
  EXPECT_EQ(bytes_of(file, guest.memory().size()), guest.model());
}

TEST(MemoryFile, huge_pages_are_written_and_read_again) {
  constexpr std::uint64_t kHuge = 2 * kMiB;
  const auto ranges = two_ranges(2 * kHuge, kHuge);
  auto memory = GuestMemory::create(ranges, Backing::kHugetlb2M);
  if (!memory) {
    GTEST_SKIP() << "no huge pages: " << memory.error().message();
  }
  Guest guest(std::move(*memory), 4);
  guest.run(5);
  UniqueFd file = empty_file();
  const auto written = write_full(guest.memory(), named(file), {});
  ASSERT_TRUE(written) << written.error().message();
  EXPECT_EQ(bytes_on_disk(file), nonzero_pages(guest.model()) * kPage);
  ASSERT_EQ(bytes_of(file, guest.memory().size()), guest.model());
  auto loaded = load_memory_file(ranges, Backing::kHugetlb2M, std::move(file), "memory file");
  if (!loaded) {
    GTEST_SKIP() << "no huge pages for a second guest: " << loaded.error().message();
  }
  EXPECT_EQ(bytes_of(*loaded), guest.model());
}

TEST(MemoryFile, a_page_with_one_byte_anywhere_is_no_page_of_zeros) {
  Guest guest(GuestMemory::create(two_ranges(kPage * kPage, kPage), Backing::kAnonymous).value(), 1);
  for (std::uint64_t page = 0; page < kPage; ++page) {
    guest.write(0, page * kPage + page, Bytes(1, std::byte{1}));
  }
  const UniqueFd file = empty_file();
  const auto written = write_full(guest.memory(), named(file), {.served_by_handler = true});
  ASSERT_TRUE(written);
  EXPECT_EQ(written->written, kPage * kPage);
  EXPECT_EQ(written->zero, kPage);
}

TEST(MemoryFile, bits_behind_a_regions_end_mean_nothing) {
  Guest guest(GuestMemory::create(two_ranges(3 * kPage, 65 * kPage), Backing::kAnonymous).value(), 1);
  guest.run(20);
  for (const PageSet& pages : {PageSet{{~0ULL}, {~0ULL, ~0ULL}}, PageSet{{0x1f}, {~0ULL, 0x7}}}) {
    const UniqueFd diff = empty_file();
    ASSERT_TRUE(write_diff(guest.memory(), pages, named(diff), {}));
    EXPECT_EQ(bytes_of(diff, guest.memory().size()), guest.model());
    EXPECT_EQ(bytes_on_disk(diff), guest.memory().size());
  }
}

TEST(MemoryFile, a_page_that_became_zeros_is_in_the_diff) {
  Guest guest(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 1);
  guest.write(0, 5 * kPage, Bytes(kPage, std::byte{7}));
  const UniqueFd base = empty_file();
  ASSERT_TRUE(write_full(guest.memory(), named(base), {}));
  guest.take_dirty();
  guest.write(0, 5 * kPage, Bytes(kPage));
  const PageSet dirty = guest.take_dirty();
  const UniqueFd diff = empty_file();
  ASSERT_TRUE(write_diff(guest.memory(), dirty, named(diff), {}));
  EXPECT_EQ(bytes_on_disk(diff), kPage);
  ASSERT_TRUE(apply_diff(named(diff), named(base), {}));
  EXPECT_EQ(bytes_of(base, guest.memory().size()), guest.model());
}

TEST(MemoryFile, pages_written_since_a_file_was_loaded_are_found_without_a_log) {
  const PageMap pages = PageMap::open().value();
  Guest first(GuestMemory::create(two_ranges(), Backing::kMemfd).value(), 11);
  first.run(40);
  UniqueFd file = empty_file();
  ASSERT_TRUE(write_full(first.memory(), named(file), {}));
  const UniqueFd base(::fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
  Guest clone(load_memory_file(two_ranges(), Backing::kAnonymous, std::move(file), "memory file").value(), 12,
              first.model());
  EXPECT_EQ(count_pages(find_written_pages(clone.memory(), pages).value()), 0U);
  clone.run(30);
  const PageSet found = find_written_pages(clone.memory(), pages).value();
  EXPECT_EQ(found, clone.take_dirty());
  const UniqueFd diff = empty_file();
  ASSERT_TRUE(write_diff(clone.memory(), found, named(diff), {}));
  const UniqueFd merged = empty_file();
  ASSERT_TRUE(copy_memory_file(named(base), named(merged), {}));
  ASSERT_TRUE(apply_diff(named(diff), named(merged), {}));
  EXPECT_EQ(bytes_of(merged, clone.memory().size()), clone.model());
  EXPECT_EQ(bytes_of(base, clone.memory().size()), first.model());
  const auto refused = find_written_pages(first.memory(), pages);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kUnsupported);
}

TEST(MemoryFile, clones_of_one_file_never_see_each_others_writes) {
  Guest parent(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 21);
  parent.run(40);
  const UniqueFd file = empty_file();
  ASSERT_TRUE(write_full(parent.memory(), named(file), {}));
  std::vector<Guest> clones;
  for (unsigned int clone = 0; clone < 5; ++clone) {
    UniqueFd mine(::fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
    clones.emplace_back(
        load_memory_file(two_ranges(), Backing::kAnonymous, std::move(mine), "memory file").value(), clone,
        parent.model());
  }
  for (int round = 0; round < 4; ++round) {
    for (Guest& clone : clones) {
      clone.run(5);
    }
  }
  for (const Guest& clone : clones) {
    EXPECT_EQ(bytes_of(clone.memory()), clone.model());
  }
  EXPECT_EQ(bytes_of(file, parent.memory().size()), parent.model());
}

// ---- what is refused ----

TEST(MemoryFile, a_file_of_the_wrong_size_or_kind_is_refused_by_name) {
  const testing::TempDir dir;
  for (const Backing backing : {Backing::kAnonymous, Backing::kMemfd, Backing::kTransparentHuge}) {
    for (const std::uint64_t size : {std::uint64_t{0}, 511 * kPage, 512 * kPage - 1, 513 * kPage}) {
      UniqueFd file = empty_file();
      ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(size)), 0);
      const auto loaded = load_memory_file(two_ranges(), backing, std::move(file), "memory file /m");
      ASSERT_FALSE(loaded);
      EXPECT_EQ(loaded.error().code(), ErrorCode::kInvalidImage);
      EXPECT_EQ(loaded.error().message(), "memory file /m: has " + std::to_string(size) +
                                              " bytes where the guest's memory has 2097152");
    }
    for (const std::string path : {"/", "/dev/zero"}) {
      auto loaded =
          load_memory_file(two_ranges(), backing, open_file(path, O_RDONLY, "x").value(), "memory file /m");
      ASSERT_FALSE(loaded);
      EXPECT_EQ(loaded.error().message(), "memory file /m: not a regular file");
    }
    const auto none = load_memory_file(two_ranges(), backing, UniqueFd(), "memory file /m");
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().message(), "look at memory file /m: Bad file descriptor (EBADF)");
  }
  const auto no_file = GuestMemory::create(two_ranges(), Backing::kPrivateFile);
  ASSERT_FALSE(no_file);
  EXPECT_EQ(no_file.error().code(), ErrorCode::kInvalidArgument);
}

TEST(MemoryFile, a_file_that_cannot_be_mapped_is_named) {
  const testing::TempDir dir;
  const UniqueFd made = open_file(dir.file("m"), O_RDWR | O_CREAT, "memory file").value();
  ASSERT_EQ(::ftruncate(made.get(), 512 * kPage), 0);
  UniqueFd write_only = open_file(dir.file("m"), O_WRONLY, "memory file").value();
  const auto loaded =
      load_memory_file(two_ranges(), Backing::kAnonymous, std::move(write_only), "memory file /m");
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code(), ErrorCode::kPermission);
  EXPECT_THAT(loaded.error().message(), HasSubstr("memory file /m: map "));
}

TEST(MemoryFile, files_and_sets_that_do_not_fit_the_call_are_refused) {
  const Guest guest(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 1);
  const UniqueFd used = empty_file();
  ASSERT_EQ(::ftruncate(used.get(), kPage), 0);
  const PageSet none = no_pages(guest.memory());
  const auto expect_refused = [](const Result<WrittenMemory>& result, const std::string& why) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(result.error().message(), HasSubstr(why));
  };
  expect_refused(write_full(guest.memory(), named(used), {}), "not an empty regular file");
  expect_refused(write_diff(guest.memory(), none, named(used), {}), "not an empty regular file");
  expect_refused(write_over(guest.memory(), none, named(used), {}), "has 4096 bytes where");
  const UniqueFd file = empty_file();
  expect_refused(write_diff(guest.memory(), PageSet{{0}}, named(file), {}), "a set of other memory");
  expect_refused(write_over(guest.memory(), PageSet{{0}, {0}}, named(file), {}), "a set of other memory");
  const UniqueFd small = empty_file();
  EXPECT_EQ(apply_diff(named(used), named(small), {}).error().code(), ErrorCode::kInvalidImage);
  const UniqueFd directory = open_file("/", O_RDONLY, "x").value();
  EXPECT_FALSE(copy_memory_file(named(directory), named(small), {}));
}

// ---- stopping, and hosts that fail ----

TEST(MemoryFile, progress_goes_up_to_the_end_and_a_no_ends_the_writing) {
  Guest guest(GuestMemory::create(two_ranges(2048 * kPage, 2048 * kPage), Backing::kAnonymous).value(), 1);
  guest.write(0, 0, Bytes(2048 * kPage, std::byte{1}));
  guest.write(1, 8 * kPage, Bytes(kPage, std::byte{1}));
  const PageMap pages = PageMap::open().value();
  std::vector<std::uint64_t> seen;
  const auto written = [&](std::size_t most) {
    seen.clear();
    const UniqueFd file = empty_file();
    return write_full(guest.memory(), named(file),
                      {.pages = &pages, .proceed = [&](std::uint64_t done, std::uint64_t total) {
                         EXPECT_EQ(total, guest.memory().size());
                         seen.push_back(done);
                         return seen.size() <= most;
                       }});
  };
  ASSERT_TRUE(written(100));
  EXPECT_EQ(seen, (std::vector<std::uint64_t>{0, 4 * kMiB, 2056 * kPage}));
  for (std::size_t most = 0; most < 3; ++most) {
    const auto stopped = written(most);
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().code(), ErrorCode::kBusy);
    EXPECT_EQ(stopped.error().message(), "write memory file /m: stopped as asked");
    EXPECT_EQ(seen.size(), most + 1);
  }
  const UniqueFd from = empty_file();
  ASSERT_TRUE(write_full(guest.memory(), named(from), {}));
  const UniqueFd to = empty_file();
  EXPECT_EQ(
      copy_memory_file(named(from), named(to), {.proceed = [](auto, auto) { return false; }}).error().code(),
      ErrorCode::kBusy);
}

TEST(MemoryFile, every_failing_call_is_an_error_with_the_files_name_and_the_cause) {
  Guest guest(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 5);
  guest.run(10);
  guest.write(0, 0, Bytes(kPage, std::byte{1}));
  guest.write(0, 9 * kPage, Bytes(kPage));
  const PageSet dirty = guest.take_dirty();
  const UniqueFd full = empty_file();
  ASSERT_TRUE(write_full(guest.memory(), named(full), {}));
  const auto expect_error = [](const auto& result, ErrorCode code, const std::string& message) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), code);
    EXPECT_EQ(result.error().message(), message);
  };
  testing::where_refused(SYS_pwrite64, ENOSPC, [&] {
    const std::string why = "write memory file /m: No space left on device (ENOSPC)";
    const UniqueFd a = empty_file();
    const UniqueFd b = empty_file();
    const UniqueFd c = empty_file();
    expect_error(write_full(guest.memory(), named(a), {}), ErrorCode::kExhausted, why);
    expect_error(write_diff(guest.memory(), dirty, named(b), {}), ErrorCode::kExhausted, why);
    expect_error(write_over(guest.memory(), dirty, named(full), {}), ErrorCode::kExhausted, why);
    expect_error(copy_memory_file(named(full), named(c), {}), ErrorCode::kExhausted, why);
  });
  testing::where_refused(SYS_ftruncate, EFBIG, [&] {
    const UniqueFd a = empty_file();
    expect_error(write_full(guest.memory(), named(a), {}), ErrorCode::kIo,
                 "size memory file /m: File too large (EFBIG)");
  });
  testing::where_refused(SYS_fallocate, EIO, [&] {
    expect_error(write_over(guest.memory(), dirty, named(full), {}), ErrorCode::kIo,
                 "clear pages of memory file /m: Input/output error (EIO)");
  });
  testing::where_refused(SYS_lseek, EIO, [&] {
    const UniqueFd a = empty_file();
    expect_error(copy_memory_file(named(full), named(a), {}), ErrorCode::kIo,
                 "find the holes of memory file /m: Input/output error (EIO)");
  });
  const PageMap pages = PageMap::open().value();
  testing::where_refused(SYS_ioctl, ENOTTY, [&] {
    testing::refuse_call(SYS_pread64, 0, 0, EIO);
    const UniqueFd a = empty_file();
    expect_error(write_full(guest.memory(), named(a), {.pages = &pages}), ErrorCode::kIo,
                 "read page map: Input/output error (EIO)");
  });
}

TEST(MemoryFile, where_no_holes_can_be_made_zeros_are_written) {
  Guest guest(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 5);
  guest.write(0, 0, Bytes(300 * kPage, std::byte{1}));
  const UniqueFd file = empty_file();
  ASSERT_TRUE(write_full(guest.memory(), named(file), {}));
  guest.take_dirty();
  guest.write(0, kPage, Bytes(290 * kPage));
  testing::where_refused(SYS_fallocate, EOPNOTSUPP, [&] {
    ASSERT_TRUE(write_over(guest.memory(), guest.take_dirty(), named(file), {}));
  });
  EXPECT_EQ(bytes_of(file, guest.memory().size()), guest.model());
}

// A file system that takes all of a file for data would have a diff clear what it does not hold.
TEST(MemoryFile, a_diff_on_a_file_system_without_holes_is_refused) {
  Guest guest(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 5);
  guest.write(0, 5 * kPage, Bytes(kPage, std::byte{1}));
  const PageSet dirty = guest.take_dirty();
  PageSet more = dirty;
  more[1][0] = 1;
  // What such a file system shows: more data than was written, and less.
  const UniqueFd file = empty_file();
  ASSERT_TRUE(write_diff(guest.memory(), more, named(file), {}));
  testing::where_refused(SYS_lseek, ENXIO, [&] {
    const UniqueFd other = empty_file();
    const auto refused = write_diff(guest.memory(), dirty, named(other), {});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::kUnsupported);
    EXPECT_THAT(refused.error().message(), HasSubstr("does not keep holes page by page"));
  });
}

// ---- a file that is cut short under its guest ----

TEST(CutFile, is_noticed_by_who_writes_the_guests_memory) {
  const PageMap pages = PageMap::open().value();
  Guest first(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 5);
  first.run(40);
  UniqueFd file = empty_file();
  ASSERT_TRUE(write_full(first.memory(), named(file), {}));
  const UniqueFd owner(::fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
  const GuestMemory clone =
      load_memory_file(two_ranges(), Backing::kAnonymous, std::move(file), "memory file").value();
  for (const std::uint64_t size : {511 * kPage, 100 * kPage + 1, std::uint64_t{0}}) {
    ASSERT_EQ(::ftruncate(owner.get(), static_cast<off_t>(size)), 0);
    const UniqueFd other = empty_file();
    const auto written = write_full(clone, named(other), {.pages = &pages});
    ASSERT_FALSE(written) << size;
    EXPECT_EQ(written.error().code(), ErrorCode::kInvalidImage);
    EXPECT_THAT(written.error().message(), HasSubstr("guest memory's own file: "));
  }
}

TEST(CutFile, is_noticed_by_who_copies_it) {
  Guest guest(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 5);
  guest.write(0, 0, Bytes(kPage, std::byte{1}));
  guest.write(1, 0, Bytes(kPage, std::byte{1}));
  const UniqueFd from = empty_file();
  ASSERT_TRUE(write_full(guest.memory(), named(from), {}));
  const UniqueFd to = empty_file();
  const auto cut = [&from](std::uint64_t done, std::uint64_t /*total*/) {
    return done > 0 || ::ftruncate(from.get(), 100 * kPage) == 0;
  };
  const auto copied = copy_memory_file(named(from), named(to), {.proceed = cut});
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().code(), ErrorCode::kInvalidImage);
}

TEST(CutFile, an_access_ends_the_process_and_a_system_call_fails) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  // Guest RAM is not inherited: the memory is made where it ends.
  const auto cut_memory = [] {
    UniqueFd file = empty_file();
    EXPECT_EQ(::ftruncate(file.get(), 512 * kPage), 0);
    const UniqueFd owner(::fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
    auto memory = load_memory_file(two_ranges(), Backing::kAnonymous, std::move(file), "memory file").value();
    EXPECT_TRUE(memory.write(GuestAddress(kPage), Bytes(kPage, std::byte{1})));
    EXPECT_EQ(::ftruncate(owner.get(), 0), 0);
    return memory;
  };
  EXPECT_EXIT(
      {
        ::signal(SIGBUS, SIG_DFL);
        // A page that was written goes with the rest.
        static_cast<void>(cut_memory().read_object<char>(GuestAddress(kPage)));
      },
      ::testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(
      {
        EXPECT_TRUE(install_crash_handlers());
        static_cast<void>(cut_memory().read_object<char>(GuestAddress(kPage)));
      },
      ::testing::ExitedWithCode(149), "SIGBUS at address 0x[0-9a-f]+ of memory file, which was cut short");
  const GuestMemory memory = cut_memory();
  const iovec page = memory.slice(GuestAddress(kPage), kPage)->for_system_call();
  const UniqueFd file = empty_file();
  EXPECT_EQ(::syscall(SYS_pwrite64, file.get(), page.iov_base, page.iov_len, 0), -1);
  EXPECT_EQ(errno, EFAULT);
}

// Memory of one page each, mapped from files that others can cut short.
class Mapped {
 public:
  // False where there is an error.
  bool add(const std::string& name) {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), kPage)};
    UniqueFd file = empty_file();
    owners_.emplace_back(::fcntl(file.get(), F_DUPFD_CLOEXEC, 0));
    if (::ftruncate(file.get(), kPage) != 0) {
      return false;
    }
    auto memory = load_memory_file(ranges, Backing::kAnonymous, std::move(file), name);
    memories_.push_back(memory ? std::optional(std::move(*memory)) : std::nullopt);
    return memory.has_value();
  }
  void remove(std::size_t which) { memories_.at(which).reset(); }
  void cut_and_touch(std::size_t which) {
    EXPECT_EQ(::ftruncate(owners_.at(which).get(), 0), 0);
    static_cast<void>(memories_.at(which)->read_object<char>(GuestAddress(0)));
  }

 private:
  std::vector<UniqueFd> owners_;
  std::vector<std::optional<GuestMemory>> memories_;
};

// So many have a name at a time.
constexpr std::size_t kNamed = 32;

TEST(CutFile, as_many_mappings_as_have_room_are_named_and_one_more_goes_without) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto touch = [](std::size_t which) {
    EXPECT_TRUE(install_crash_handlers());
    Mapped mapped;
    for (std::size_t number = 0; number < kNamed + 8; ++number) {
      if (!mapped.add("file " + std::to_string(number))) {
        ::_exit(1);
      }
    }
    mapped.cut_and_touch(which);
  };
  EXPECT_EXIT(touch(0), ::testing::ExitedWithCode(149), "of file 0, which was cut short");
  EXPECT_EXIT(touch(kNamed - 1), ::testing::ExitedWithCode(149), "of file 31, which was cut short");
  EXPECT_EXIT(touch(kNamed), ::testing::ExitedWithCode(149), "SIGBUS at address 0x[0-9a-f]+; exit code 149");
}

TEST(CutFile, a_mapping_that_is_gone_leaves_its_place_to_the_next) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto touch = [](std::size_t which) {
    EXPECT_TRUE(install_crash_handlers());
    Mapped mapped;
    for (std::size_t number = 0; number <= kNamed; ++number) {
      if (number == kNamed) {
        mapped.remove(7);
      }
      if (!mapped.add("file " + std::to_string(number))) {
        ::_exit(1);
      }
    }
    mapped.cut_and_touch(which);
  };
  EXPECT_EXIT(touch(kNamed), ::testing::ExitedWithCode(149), "of file 32, which was cut short");
  EXPECT_EXIT(touch(8), ::testing::ExitedWithCode(149), "of file 8, which was cut short");
}

TEST(CutFile, a_name_that_is_too_long_is_cut_short_itself) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        EXPECT_TRUE(install_crash_handlers());
        Mapped mapped;
        EXPECT_TRUE(mapped.add("/" + std::string(1000, 'x')));
        mapped.cut_and_touch(0);
      },
      ::testing::ExitedWithCode(149), " of /x+, which was cut short");
}

TEST(CutFile, a_snapshot_over_the_guests_own_file_leaves_the_guest_its_memory) {
  const testing::TempDir dir;
  Guest first(GuestMemory::create(two_ranges(), Backing::kAnonymous).value(), 5);
  first.run(40);
  const auto save = [&dir](const GuestMemory& memory) -> Result<void> {
    MAYFLY_TRY_ASSIGN(AtomicFile file, AtomicFile::create(dir.file("m"), "memory file"));
    MAYFLY_TRY(write_full(memory, {file.descriptor(), file.name()}, {}));
    return file.commit();
  };
  ASSERT_TRUE(save(first.memory()));
  const auto open = [&dir] { return open_file(dir.file("m"), O_RDONLY, "memory file").value(); };
  Guest clone(load_memory_file(two_ranges(), Backing::kAnonymous, open(), "memory file").value(), 6,
              first.model());
  clone.run(20);
  ASSERT_TRUE(save(clone.memory()));
  EXPECT_EQ(bytes_of(clone.memory()), clone.model());
  ASSERT_TRUE(save(GuestMemory::create(two_ranges(), Backing::kAnonymous).value()));
  EXPECT_EQ(bytes_of(clone.memory()), clone.model());
  EXPECT_EQ(bytes_of(open(), 512 * kPage), Bytes(512 * kPage));
}

// ---- snapshots that are cut short ----

// A process that saves memory again and again, every page of one snapshot with the same number.
[[noreturn]] void save_forever(const std::string& path) {
  GuestMemory memory = GuestMemory::create(two_ranges(), Backing::kAnonymous).value();
  const PageMap pages = PageMap::open().value();
  for (std::uint32_t number = 1;; ++number) {
    const Bytes bytes(300 * kPage, static_cast<std::byte>(number % 250 + 1));
    std::ignore = memory.write(GuestAddress(0), bytes);
    std::ignore = memory.write(GuestAddress(1ULL << 32), std::span(bytes).first(212 * kPage));
    auto file = AtomicFile::create(path, "memory file");
    if (!file || !write_full(memory, {file->descriptor(), file->name()}, {.pages = &pages}) ||
        !file->commit()) {
      ::_exit(1);
    }
  }
}

bool is_one_snapshot(const std::string& path) {
  const std::string text = testing::read_file(path);
  return text.size() == 512 * kPage && text[0] != 0 &&
         std::all_of(text.begin(), text.end(), [&](char c) { return c == text[0]; });
}

TEST(CutSnapshot, a_kill_at_any_moment_leaves_a_whole_file) {
  const testing::TempDir dir;
  const std::string path = dir.file("m");
  std::ofstream(path) << std::string(512 * kPage, 'x');
  std::mt19937 random(3);  // NOLINT(cert-msc51-cpp): the same run each time
  for (int round = 0; round < 30; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      save_forever(path);
    }
    ::usleep(static_cast<useconds_t>(random() % 20'000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "round " << round;
    ASSERT_TRUE(is_one_snapshot(path)) << "round " << round;
  }
}

TEST(CutSnapshot, a_full_disk_leaves_the_former_file_and_nothing_else) {
  const testing::TempDir dir;
  const std::string mount = std::filesystem::path(dir.file("x")).parent_path();
  constexpr int kNoMounts = 77;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if ((::unshare(CLONE_NEWNS) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("none", mount.c_str(), "tmpfs", 0, "size=3m") != 0) {
      ::_exit(kNoMounts);
    }
    // Room for one snapshot of 2 MiB, and for half of another.
    const auto save = [&](std::byte value) -> Result<void> {
      GuestMemory memory = GuestMemory::create(two_ranges(), Backing::kAnonymous).value();
      std::ignore = memory.fill(GuestAddress(0), 300 * kPage, value);
      std::ignore = memory.fill(GuestAddress(1ULL << 32), 212 * kPage, value);
      MAYFLY_TRY_ASSIGN(AtomicFile file, AtomicFile::create(dir.file("m"), "memory file"));
      MAYFLY_TRY(write_full(memory, {file.descriptor(), file.name()}, {}));
      return file.commit();
    };
    const bool first = save(std::byte{1}).has_value();
    const auto second = save(std::byte{2});
    const bool told = !second && second.error().code() == ErrorCode::kExhausted &&
                      second.error().message() ==
                          "write memory file " + dir.file("m") + ": No space left on device (ENOSPC)";
    ::_exit(first && told && is_one_snapshot(dir.file("m")) && testing::read_file(dir.file("m"))[0] == 1 &&
                    !std::filesystem::exists(dir.file(".m.partial"))
                ? 0
                : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNoMounts) {
    GTEST_SKIP() << "no right to mount a small file system";
  }
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(CutSnapshot, all_pages_can_be_dirty) {
  Guest guest(GuestMemory::create(two_ranges(), Backing::kMemfd).value(), 8);
  guest.run(50);
  const UniqueFd diff = empty_file();
  const auto written = write_diff(guest.memory(), all_pages(guest.memory()), named(diff), {});
  ASSERT_TRUE(written) << written.error().message();
  EXPECT_EQ(bytes_of(diff, guest.memory().size()), guest.model());
}

}  // namespace
}  // namespace mayfly
