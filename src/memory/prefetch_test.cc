#include "memory/prefetch.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/atomic_file.h"
#include "support/poor_host.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using ::testing::HasSubstr;

constexpr std::uint64_t kFirst = 5000;  // pages
constexpr std::uint64_t kSecond = 3192;
constexpr std::uint64_t kPages = kFirst + kSecond;
constexpr std::uint64_t kSnapshot = 17;

std::vector<GuestRange> two_ranges() {
  return {GuestRange::make(GuestAddress(0), kFirst * kGuestPage).value(),
          GuestRange::make(GuestAddress(1ULL << 32), kSecond * kGuestPage).value()};
}

GuestAddress address_of(std::uint64_t page) {
  return GuestAddress(page < kFirst ? page * kGuestPage : (1ULL << 32) + (page - kFirst) * kGuestPage);
}

// A memory file whose pages hold their numbers, on the disk, and a working set of it.
class Restore {
 public:
  explicit Restore(const std::vector<PageRun>& runs,
                   const WorkingSetOwner& owner = {kPages * kGuestPage, kSnapshot})
      : runs_(runs) {
    file_ = open_file(directory_.file("memory"), O_RDWR | O_CREAT, "memory file").value();
    std::vector<std::uint64_t> page(kGuestPage / 8);
    for (std::uint64_t index = 0; index < kPages; ++index) {
      std::fill(page.begin(), page.end(), index + 1);
      EXPECT_EQ(::pwrite(file_.get(), page.data(), kGuestPage, static_cast<off_t>(index * kGuestPage)),
                static_cast<ssize_t>(kGuestPage));
    }
    EXPECT_EQ(::fsync(file_.get()), 0);
    auto set = AtomicFile::create(directory_.file("set"), "working set").value();
    EXPECT_TRUE(write_working_set({set.descriptor(), set.name()}, owner, runs));
    EXPECT_TRUE(set.commit());
  }

  const UniqueFd& file() const { return file_; }
  UniqueFd open_memory() const {
    return open_file(directory_.file("memory"), O_RDONLY, "memory file").value();
  }
  GuestMemory map() const {
    return GuestMemory::map_file(two_ranges(), open_memory(), "memory file").value();
  }
  Result<WorkingSet> read_set() const {
    const UniqueFd set = open_file(directory_.file("set"), O_RDONLY, "working set").value();
    return WorkingSet::read({set, "set"}, {kPages * kGuestPage, kSnapshot});
  }
  std::unique_ptr<Prefetcher> prefetch(const GuestMemory& memory,
                                       std::function<Result<void>()> confine = {}) const {
    return Prefetcher::start(memory, read_set().value(), std::move(confine)).value();
  }

  // Drops the file from the page cache; whether that worked (a tmpfs has nothing else).
  bool chill() const {
    EXPECT_EQ(::posix_fadvise(file_.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
    return cached().empty();
  }
  // The pages in the page cache.
  std::set<std::uint64_t> cached() const {
    void* const start = ::mmap(nullptr, kPages * kGuestPage, PROT_READ, MAP_SHARED, file_.get(), 0);
    std::vector<unsigned char> there(kPages);
    EXPECT_EQ(::mincore(start, kPages * kGuestPage, there.data()), 0);
    ::munmap(start, kPages * kGuestPage);
    std::set<std::uint64_t> pages;
    for (std::uint64_t page = 0; page < kPages; ++page) {
      if ((there[page] & 1) != 0) {
        pages.insert(page);
      }
    }
    return pages;
  }
  // What was asked for may still be on its way. Never comes back where it was not.
  void wait_cached() const {
    const auto pages = wanted();
    for (;;) {
      const auto there = cached();
      if (std::includes(there.begin(), there.end(), pages.begin(), pages.end())) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  std::set<std::uint64_t> wanted() const {
    std::set<std::uint64_t> pages;
    for (const PageRun& run : runs_) {
      for (std::uint64_t page = run.page; page < std::uint64_t{run.page} + run.count; ++page) {
        pages.insert(page);
      }
    }
    return pages;
  }

 private:
  testing::TempDir directory_;
  UniqueFd file_;
  std::vector<PageRun> runs_;
};

std::set<std::uint64_t> mapped(const GuestMemory& memory) {
  const PageMap map = PageMap::open().value();
  std::set<std::uint64_t> pages;
  for (const MemoryRegion& region : memory.regions()) {
    EXPECT_TRUE(map.for_each_run(region.host, region.range.size(), PageMap::Kind::kThere,
                                 [&](std::uint64_t offset, std::uint64_t size) {
                                   for (std::uint64_t done = 0; done < size; done += kGuestPage) {
                                     pages.insert((region.backing_offset + offset + done) / kGuestPage);
                                   }
                                   return Result<void>();
                                 }));
  }
  return pages;
}

std::uint64_t private_pages(const GuestMemory& memory) {
  return count_pages(find_written_pages(memory, PageMap::open().value()).value());
}

void expect_contents(const GuestMemory& memory, const std::set<std::uint64_t>& pages) {
  for (const std::uint64_t page : pages) {
    ASSERT_EQ(memory.read_object<std::uint64_t>(address_of(page)).value(), page + 1);
  }
}

// Apart by more than a gap that is read over, out of order, one over the border of the two regions.
const std::vector<PageRun> kRuns = {{7000, 100}, {20, 1}, {4990, 20}, {3000, 1}, {0, 3}};

TEST(Prefetch, all_pages_of_the_set_are_in_the_cache_and_in_the_page_tables) {
  const Restore restore(kRuns);
  const bool cold = restore.chill();
  GuestMemory memory = restore.map();
  auto prefetcher = restore.prefetch(memory);
  ASSERT_TRUE(prefetcher->wait_confined());
  const auto progress = prefetcher->wait_ended();
  EXPECT_FALSE(progress.failed);
  EXPECT_EQ(progress.wanted_pages, 125U);
  EXPECT_EQ(progress.asked_pages, 125U);
  const auto wanted = restore.wanted();
  if (progress.mapped_pages != 0) {
    EXPECT_EQ(progress.mapped_pages, 125U);
    EXPECT_THAT(mapped(memory), ::testing::IsSupersetOf(wanted));
  }
  restore.wait_cached();
  expect_contents(memory, wanted);
  EXPECT_EQ(private_pages(memory), 0U) << "the pages are the file's own";
  if (!cold) {
    GTEST_SKIP() << "the file system of temporary files keeps them in the page cache: nothing was to be read";
  }
  EXPECT_LT(restore.cached().size(), kPages);
}

TEST(Prefetch, pages_that_were_written_become_the_guests_own_and_no_others) {
  // Among read ones, over the border of two pieces, over that of the two regions.
  const std::vector<PageRun> runs = {{100, 2},        {102, 3, true},  {105, 1},
                                     {300, 20},       {320, 40, true}, {360, 9},
                                     {6000, 1, true}, {4998, 4, true}, {50, 1, true}};
  const Restore restore(runs);
  GuestMemory memory = restore.map();
  const auto progress = restore.prefetch(memory)->wait_ended();
  EXPECT_FALSE(progress.failed);
  if (progress.mapped_pages == 0) {
    GTEST_SKIP() << "this kernel fills no page tables when it is asked to";
  }
  EXPECT_EQ(progress.own_pages, 49U);
  const PageMap map = PageMap::open().value();
  std::set<std::uint64_t> own;
  for (const MemoryRegion& region : memory.regions()) {
    const auto add = [&](std::uint64_t offset, std::uint64_t size) {
      for (std::uint64_t done = 0; done < size; done += kGuestPage) {
        own.insert((region.backing_offset + offset + done) / kGuestPage);
      }
      return Result<void>();
    };
    ASSERT_TRUE(map.for_each_run(region.host, region.range.size(), PageMap::Kind::kPrivate, add));
  }
  std::set<std::uint64_t> written;
  for (const PageRun& run : runs) {
    for (std::uint32_t page = run.page; run.written && page < run.page + run.count; ++page) {
      written.insert(page);
    }
  }
  EXPECT_EQ(own, written);
  expect_contents(memory, restore.wanted());
}

// Whoever wrote the set may be hostile: how much is done grows with its size alone.
TEST(Prefetch, runs_that_overlap_are_each_walked_once) {
  const Restore restore(std::vector<PageRun>(200, {7, 1, true}));
  GuestMemory memory = restore.map();
  const auto progress = restore.prefetch(memory)->wait_ended();
  EXPECT_FALSE(progress.failed);
  if (progress.mapped_pages == 0) {
    GTEST_SKIP() << "this kernel fills no page tables when it is asked to";
  }
  EXPECT_EQ(progress.own_pages, 200U);
  expect_contents(memory, restore.wanted());
}

TEST(Prefetch, pages_are_read_where_they_cannot_be_mapped) {
  const Restore restore(kRuns);
  const bool cold = restore.chill();
  const GuestMemory memory = restore.map();
  std::thread([&] {
    testing::refuse_call(SYS_madvise, 2, 22, EINVAL);  // MADV_POPULATE_READ
    const auto progress = restore.prefetch(memory)->wait_ended();
    EXPECT_FALSE(progress.failed);
    EXPECT_EQ(progress.asked_pages, 125U);
    EXPECT_EQ(progress.mapped_pages, 0U);
  }).join();
  EXPECT_TRUE(mapped(memory).empty());
  if (!cold) {
    GTEST_SKIP() << "the file system of temporary files keeps them in the page cache: nothing was to be read";
  }
  restore.wait_cached();
}

TEST(Prefetch, runs_that_nearly_touch_are_read_as_one) {
  const Restore restore({{100, 1}, {105, 1}, {110, 2}, {117, 1}, {112, 1}});
  const GuestMemory memory = restore.map();
  const auto progress = restore.prefetch(memory)->wait_ended();
  // 100 to 111, then 117, and 112, which lies behind.
  EXPECT_EQ(progress.asked_pages, 14U);
  EXPECT_EQ(progress.wanted_pages, 6U);
}

TEST(Prefetch, a_set_larger_than_what_is_queued_at_once_is_read_whole) {
  const Restore restore({{0, kPages}});
  restore.chill();
  const GuestMemory memory = restore.map();
  const auto progress = restore.prefetch(memory)->wait_ended();
  EXPECT_FALSE(progress.failed);
  EXPECT_EQ(progress.asked_pages, kPages);
  EXPECT_TRUE(progress.mapped_pages == kPages || progress.mapped_pages == 0);
}

TEST(Prefetch, an_empty_set_is_none_to_fail_at) {
  const Restore restore({});
  const GuestMemory memory = restore.map();
  const auto progress = restore.prefetch(memory)->wait_ended();
  EXPECT_TRUE(progress.ended);
  EXPECT_FALSE(progress.failed);
  EXPECT_EQ(progress.asked_pages, 0U);
}

TEST(Prefetch, of_a_set_of_another_snapshot_or_memory_is_refused) {
  for (const auto& [owner, why] :
       {std::pair(WorkingSetOwner{kPages * kGuestPage, kSnapshot + 1}, "set: is of another snapshot"),
        std::pair(WorkingSetOwner{(kPages + 1) * kGuestPage, kSnapshot},
                  "set: is of 33558528 bytes of memory, not of 33554432")}) {
    const Restore restore(kRuns, owner);
    const auto refused = restore.read_set();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().message(), why);
  }
}

TEST(Prefetch, of_memory_that_was_cut_off_ends_and_says_why) {
  const Restore restore(kRuns);
  const GuestMemory memory = restore.map();
  ASSERT_EQ(::ftruncate(restore.file().get(), 0), 0);
  const auto progress = restore.prefetch(memory)->wait_ended();
  EXPECT_TRUE(progress.ended);
  if (progress.mapped_pages == 0 && !progress.failed) {
    GTEST_SKIP() << "before Linux 5.14 nothing is mapped, and reading past a file's end is no error";
  }
  ASSERT_TRUE(progress.failed);
  EXPECT_THAT(progress.failed->message(), HasSubstr("map guest memory's own file ahead"));
}

TEST(Prefetch, that_the_host_refuses_ends_and_says_why) {
  const Restore restore(kRuns);
  const GuestMemory memory = restore.map();
  testing::where_refused(SYS_readahead, EIO, [&] {
    const auto progress = restore.prefetch(memory)->wait_ended();
    ASSERT_TRUE(progress.failed);
    EXPECT_THAT(progress.failed->message(), HasSubstr("read guest memory's own file ahead"));
    EXPECT_EQ(progress.asked_pages, 0U);
  });
}

TEST(Prefetch, that_cannot_be_confined_reads_nothing_and_says_why) {
  const Restore restore(kRuns);
  const GuestMemory memory = restore.map();
  auto prefetcher = restore.prefetch(memory, [] { return fail(ErrorCode::kInternal, "no filter"); });
  EXPECT_EQ(prefetcher->wait_confined().error().message(), "no filter");
  const auto progress = prefetcher->wait_ended();
  EXPECT_EQ(progress.failed->message(), "no filter");
  EXPECT_EQ(progress.asked_pages, 0U);
}

TEST(Prefetch, is_confined_on_its_own_thread) {
  const Restore restore(kRuns);
  const GuestMemory memory = restore.map();
  std::thread::id confined;
  auto prefetcher = restore.prefetch(memory, [&] {
    confined = std::this_thread::get_id();
    return Result<void>();
  });
  ASSERT_TRUE(prefetcher->wait_confined());
  EXPECT_NE(confined, std::thread::id());
  EXPECT_NE(confined, std::this_thread::get_id());
}

TEST(Prefetch, of_other_memory_is_refused) {
  const Restore restore(kRuns);
  GuestMemory anonymous = GuestMemory::create(two_ranges(), Backing::kAnonymous).value();
  WorkingSet set = restore.read_set().value();
  EXPECT_EQ(take_own(anonymous, set).error().code(), ErrorCode::kUnsupported);
  EXPECT_EQ(Prefetcher::start(anonymous, std::move(set)).error().code(), ErrorCode::kUnsupported);
}

constexpr std::uint32_t kBlock = 512;  // pages of a huge page

// Block 2 has just enough of it, by two runs; block 4 a page too few, and pages that were written; block 7 is
// whole, and its run goes on to both sides; the last of the first region is not a whole one, and in the
// second none is aligned as in the file.
const std::vector<PageRun> kDense = {{5 * kBlock - 63, 63, true}, {2 * kBlock + 100, 60},
                                     {2 * kBlock + 1, 4},         {7 * kBlock - 32, kBlock + 64},
                                     {9 * kBlock, 200},           {6000, 2000}};

std::set<std::uint64_t> pages_of_blocks(const std::set<std::uint32_t>& blocks) {
  std::set<std::uint64_t> pages;
  for (const std::uint32_t block : blocks) {
    for (std::uint64_t page = 0; page < kBlock; ++page) {
      pages.insert(std::uint64_t{block} * kBlock + page);
    }
  }
  return pages;
}

std::set<std::uint64_t> all_pages() {
  std::set<std::uint64_t> pages;
  for (std::uint64_t page = 0; page < kPages; ++page) {
    pages.insert(page);
  }
  return pages;
}

TEST(OwnBlocks, are_those_that_the_set_is_dense_in_and_hold_what_the_file_holds) {
  const Restore restore(kDense);
  GuestMemory memory = restore.map();
  const OwnBlocks own = take_own(memory, restore.read_set().value()).value();
  OwnBlocks expected(kPages / kBlock);
  expected[2] = expected[7] = true;
  EXPECT_EQ(own, expected);
  EXPECT_EQ(mapped(memory), pages_of_blocks({2, 7}));
  EXPECT_EQ(private_pages(memory), 2 * kBlock);
  expect_contents(memory, all_pages());
}

TEST(OwnBlocks, are_not_asked_for_again_and_stay_as_they_are) {
  const Restore restore(kDense);
  GuestMemory memory = restore.map();
  WorkingSet set = restore.read_set().value();
  OwnBlocks own = take_own(memory, set).value();
  ASSERT_TRUE(memory.write_object<std::uint64_t>(address_of(7 * kBlock + 5), 1234));
  const auto progress = Prefetcher::start(memory, std::move(set), {}, std::move(own)).value()->wait_ended();
  EXPECT_FALSE(progress.failed);
  EXPECT_EQ(progress.wanted_pages, 63 + 64 + 200 + 2000U);
  EXPECT_EQ(progress.asked_pages, progress.wanted_pages);
  EXPECT_EQ(memory.read_object<std::uint64_t>(address_of(7 * kBlock + 5)).value(), 1234U);
  if (progress.mapped_pages > 0) {
    EXPECT_EQ(private_pages(memory), 2 * kBlock + 63U);
  }
}

TEST(OwnBlocks, of_a_region_behind_another_are_found_where_they_are_aligned_alike) {
  const std::uint64_t first = 4 * kBlock;
  const Restore restore({{5 * kBlock, 100}, {3 * kBlock, 100}});
  const std::vector<GuestRange> ranges = {
      GuestRange::make(GuestAddress(0), first * kGuestPage).value(),
      GuestRange::make(GuestAddress(1ULL << 32), (kPages - first) * kGuestPage).value()};
  GuestMemory memory = GuestMemory::map_file(ranges, restore.open_memory(), "memory file").value();
  ASSERT_TRUE(take_own(memory, restore.read_set().value()));
  EXPECT_EQ(mapped(memory), pages_of_blocks({3, 5}));
  EXPECT_EQ(memory.read_object<std::uint64_t>(GuestAddress((1ULL << 32) + kBlock * kGuestPage)).value(),
            5 * kBlock + 1U);
}

TEST(OwnBlocks, of_more_stretches_than_are_allowed_the_last_are_left_to_a_sweep) {
  EXPECT_LT(2 * kMostStretches, 65530U) << "two mappings each";
  const Restore restore({{6 * kBlock, 100}, {4 * kBlock, 100}, {kBlock, 2 * kBlock}});
  GuestMemory memory = restore.map();
  WorkingSet set = restore.read_set().value();
  OwnBlocks own = take_own(memory, set, 2).value();
  OwnBlocks expected(kPages / kBlock);
  expected[1] = expected[2] = expected[4] = true;
  EXPECT_EQ(own, expected);
  EXPECT_EQ(mapped(memory), pages_of_blocks({1, 2, 4}));
  const auto progress = Prefetcher::start(memory, std::move(set), {}, std::move(own)).value()->wait_ended();
  EXPECT_FALSE(progress.failed);
  EXPECT_EQ(progress.wanted_pages, 100U);
  EXPECT_EQ(progress.asked_pages, 100U);
  expect_contents(memory, restore.wanted());
}

TEST(OwnBlocks, of_a_file_that_was_cut_short_are_refused) {
  const Restore restore(kDense);
  GuestMemory memory = restore.map();
  ASSERT_EQ(::ftruncate(restore.file().get(), (7 * kBlock + 1) * kGuestPage), 0);
  const auto own = take_own(memory, restore.read_set().value());
  ASSERT_FALSE(own);
  EXPECT_EQ(own.error().code(), ErrorCode::kInvalidImage);
  EXPECT_THAT(own.error().message(), HasSubstr("guest memory's own file: ends at byte 14684160"));
}

TEST(OwnBlocks, that_the_host_cannot_have_are_refused) {
  const Restore restore(kDense);
  GuestMemory memory = restore.map();
  const WorkingSet set = restore.read_set().value();
  testing::where_refused(SYS_madvise, ENOMEM, [&] {
    const auto own = take_own(memory, set);
    ASSERT_FALSE(own);
    EXPECT_EQ(own.error().code(), ErrorCode::kExhausted);
    EXPECT_THAT(own.error().message(), HasSubstr("keep guest memory from core dumps"));
  });
}

TEST(Prefetch, may_be_stopped_at_any_moment_and_never_undoes_a_write) {
  std::vector<PageRun> runs;
  for (std::uint32_t page = 0; page + 1 < kPages; page += 9) {
    runs.push_back({page, 2});
  }
  std::mt19937 random(3);
  std::shuffle(runs.begin(), runs.end(), random);
  const Restore restore(runs);
  std::uint64_t whole = 0;
  std::uint64_t cut = 0;
  for (unsigned round = 0; round < 40; ++round) {
    restore.chill();
    GuestMemory memory = restore.map();
    auto prefetcher = restore.prefetch(memory);
    std::thread guest([&] {
      for (std::uint64_t page = round % 7; page < kPages; page += 37) {
        ASSERT_TRUE(memory.write_object<std::uint64_t>(address_of(page), ~page));
      }
    });
    for (std::uint64_t wait = random() % 2000; wait > 0 && prefetcher->progress().asked_pages < wait;) {
      if (prefetcher->progress().ended) {
        break;
      }
      std::this_thread::yield();
    }
    if (round % 2 == 0) {
      prefetcher->request_stop();
    }
    prefetcher->stop();
    const auto progress = prefetcher->progress();
    EXPECT_TRUE(progress.ended);
    EXPECT_FALSE(progress.failed);
    (progress.asked_pages >= 2 * runs.size() ? whole : cut) += 1;
    guest.join();
    for (std::uint64_t page = round % 7; page < kPages; page += 37) {
      ASSERT_EQ(memory.read_object<std::uint64_t>(address_of(page)).value(), ~page);
    }
  }
  RecordProperty("whole", static_cast<int>(whole));
  EXPECT_GT(cut, 0U) << "no sweep was stopped before its end, " << whole << " went on to it";
}

}  // namespace
}  // namespace mayfly
