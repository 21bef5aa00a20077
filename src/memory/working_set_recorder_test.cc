#include "memory/working_set_recorder.h"

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
#include <iostream>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "support/poor_host.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

constexpr std::uint64_t kFirst = 5000;  // pages
constexpr std::uint64_t kSecond = 3192;
constexpr std::uint64_t kPages = kFirst + kSecond;

std::vector<GuestRange> two_ranges() {
  return {GuestRange::make(GuestAddress(0), kFirst * kGuestPage).value(),
          GuestRange::make(GuestAddress(1ULL << 32), kSecond * kGuestPage).value()};
}

// A memory file, all of it data and in the page cache.
class Guest {
 public:
  Guest() : path_(directory_.file("memory")) {
    const UniqueFd fd = open_file(path_, O_RDWR | O_CREAT, "memory file").value();
    const std::vector<std::byte> page(kGuestPage, std::byte{1});
    for (std::uint64_t index = 0; index < kPages; ++index) {
      EXPECT_EQ(::pwrite(fd.get(), page.data(), kGuestPage, static_cast<off_t>(index * kGuestPage)),
                static_cast<ssize_t>(kGuestPage));
    }
  }

  const std::string& path() const { return path_; }
  GuestMemory map() const {
    return GuestMemory::map_file(two_ranges(), open_file(path_, O_RDONLY, "memory file").value(),
                                 "memory file")
        .value();
  }

 private:
  testing::TempDir directory_;
  std::string path_;
};

GuestAddress address_of(std::uint64_t page) {
  return GuestAddress(page < kFirst ? page * kGuestPage : (1ULL << 32) + (page - kFirst) * kGuestPage);
}

void touch(GuestMemory& memory, std::uint64_t page) {
  if (page % 3 == 0) {
    ASSERT_TRUE(memory.write_object<std::uint64_t>(address_of(page), 7));
  } else {
    ASSERT_TRUE(memory.read_object<std::uint64_t>(address_of(page)));
  }
}

std::set<std::uint64_t> pages_of(const std::vector<PageRun>& runs) {
  std::set<std::uint64_t> pages;
  for (const PageRun& run : runs) {
    for (std::uint64_t page = run.page; page < std::uint64_t{run.page} + run.count; ++page) {
      EXPECT_TRUE(pages.insert(page).second) << "page " << page << " twice";
    }
  }
  return pages;
}

std::set<std::uint64_t> scattered(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::set<std::uint64_t> pages;
  while (pages.size() < count) {
    pages.insert(random() % kPages);
  }
  return pages;
}

// Touches pages, as a guest would from a thread of its own, and holds that all of them are recorded.
void record_scattered(bool neighbours_are_kept_out) {
  const Guest guest;
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  auto recorder = WorkingSetRecorder::start(memory, pages).value();
  ASSERT_TRUE(recorder->wait_confined());
  const auto touched = scattered(400, 1);
  std::thread([&] {
    for (const std::uint64_t page : touched) {
      touch(memory, page);
    }
  }).join();
  const auto recording = recorder->finish().value();
  const auto recorded = pages_of(recording.runs);
  EXPECT_TRUE(recording.whole);
  EXPECT_EQ(recording.exact, recorder->exact());
  EXPECT_EQ(recording.pages, recorded.size());
  EXPECT_THAT(recorded, IsSupersetOf(touched));
  std::cout << touched.size() << " pages touched, " << recorded.size() - touched.size() << " more recorded\n";
  if (recording.exact) {
    EXPECT_EQ(recorded, touched);
  }
  EXPECT_TRUE(neighbours_are_kept_out || !recording.exact);
}

TEST(WorkingSetRecorder, every_touched_page_is_recorded_and_no_other_where_the_host_can) {
  record_scattered(true);
}

TEST(WorkingSetRecorder, every_touched_page_is_recorded_where_a_userfaultfd_is_refused) {
  testing::where_refused(SYS_userfaultfd, EPERM, [] { record_scattered(false); });
}

TEST(WorkingSetRecorder, every_touched_page_is_recorded_where_page_tables_cannot_be_scanned) {
  std::thread([] {
    testing::refuse_call(SYS_ioctl, 1, 0xc0606610, ENOTTY);  // PAGEMAP_SCAN
    record_scattered(true);
  }).join();
}

TEST(WorkingSetRecorder, a_huge_page_of_the_page_cache_is_not_taken_for_touched_pages) {
  const Guest guest;
  {
    // Has the file read anew, where the host can in huge pages.
    const UniqueFd fd = open_file(guest.path(), O_RDWR, "memory file").value();
    ASSERT_EQ(::fsync(fd.get()), 0);
    ASSERT_EQ(::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
    constexpr std::uint64_t kHuge = 2ULL << 20;
    void* const start = ::mmap(nullptr, kPages * kGuestPage, PROT_READ, MAP_SHARED, fd.get(), 0);
    ASSERT_NE(start, MAP_FAILED);
    static_cast<void>(::madvise(start, kPages * kGuestPage, MADV_HUGEPAGE));
    for (std::uint64_t at = 0; at < kPages * kGuestPage; at += kHuge) {
      static_cast<void>(*(static_cast<volatile char*>(start) + at));
    }
    ::munmap(start, kPages * kGuestPage);
  }
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  auto recorder = WorkingSetRecorder::start(memory, pages).value();
  if (!recorder->exact()) {
    GTEST_SKIP() << "this kernel maps the neighbours of pages that are touched";
  }
  touch(memory, 700);
  touch(memory, 703);
  touch(memory, 1300);
  touch(memory, 1302);
  EXPECT_EQ(recorder->finish().value().runs,
            (std::vector<PageRun>{{700, 1}, {703, 1}, {1300, 1}, {1302, 1, true}}));
}

void record_written() {
  const Guest guest;
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  auto recorder = WorkingSetRecorder::start(memory, pages).value();
  std::set<std::uint64_t> written;
  for (std::uint64_t page = 4990; page < 5010; ++page) {
    touch(memory, page);
    if (page % 3 == 0) {
      written.insert(page);
    }
  }
  const auto recording = recorder->finish().value();
  std::set<std::uint64_t> told;
  for (const PageRun& run : recording.runs) {
    for (std::uint32_t page = run.page; run.written && page < run.page + run.count; ++page) {
      told.insert(page);
    }
  }
  EXPECT_EQ(told, written);
  EXPECT_EQ(recording.pages, pages_of(recording.runs).size());
}

TEST(WorkingSetRecorder, pages_that_were_written_are_told_from_those_that_were_read) {
  record_written();
}

TEST(WorkingSetRecorder, written_pages_are_told_where_page_tables_cannot_be_scanned) {
  std::thread([] {
    testing::refuse_call(SYS_ioctl, 1, 0xc0606610, ENOTTY);  // PAGEMAP_SCAN
    record_written();
  }).join();
}

TEST(WorkingSetRecorder, where_a_userfaultfd_is_refused_no_neighbours_are_read_from_the_disk) {
  testing::where_refused(SYS_userfaultfd, EPERM, [] {
    const Guest guest;
    const UniqueFd fd = open_file(guest.path(), O_RDWR, "memory file").value();
    ASSERT_EQ(::fsync(fd.get()), 0);
    GuestMemory memory = guest.map();
    const PageMap pages = PageMap::open().value();
    auto recorder = WorkingSetRecorder::start(memory, pages).value();
    ASSERT_FALSE(recorder->exact());
    void* const start = ::mmap(nullptr, kPages * kGuestPage, PROT_READ, MAP_SHARED, fd.get(), 0);
    std::vector<unsigned char> there(kPages);
    ASSERT_EQ(::mincore(start, kPages * kGuestPage, there.data()), 0);
    ::munmap(start, kPages * kGuestPage);
    if (std::any_of(there.begin(), there.end(), [](unsigned char page) { return (page & 1) != 0; })) {
      GTEST_SKIP() << "the file system of temporary files keeps them in the page cache";
    }
    const auto touched = scattered(400, 1);
    for (const std::uint64_t page : touched) {
      touch(memory, page);
    }
    EXPECT_EQ(pages_of(recorder->finish().value().runs), touched);
  });
}

TEST(WorkingSetRecorder, pages_that_were_touched_first_come_first) {
  const Guest guest;
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  auto recorder = WorkingSetRecorder::start(memory, pages).value();
  if (!recorder->exact()) {
    GTEST_SKIP() << "this kernel maps the neighbours of pages that are touched";
  }
  std::vector<PageRun> want;
  for (const std::uint32_t page : {7000U, 300U, 4999U, 0U}) {
    touch(memory, page);
    want.push_back({.page = page, .count = 1, .written = page % 3 == 0});
    while (recorder->pages() < want.size()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  EXPECT_EQ(recorder->finish().value().runs, want);
}

TEST(WorkingSetRecorder, what_the_guest_writes_stays) {
  const Guest guest;
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  auto recorder = WorkingSetRecorder::start(memory, pages).value();
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (std::uint64_t round = 0; !stop; ++round) {
      const auto address = address_of(round % kPages);
      ASSERT_TRUE(memory.write_object<std::uint64_t>(address, round));
      ASSERT_EQ(memory.read_object<std::uint64_t>(address).value(), round);
    }
  });
  while (recorder->pages() < 2000) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_GE(recorder->finish().value().pages, 2000U);
  stop = true;
  writer.join();
}

TEST(WorkingSetRecorder, holes_of_the_file_are_left_out) {
  const Guest guest;
  {
    const UniqueFd fd = open_file(guest.path(), O_RDWR, "memory file").value();
    ASSERT_EQ(
        ::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100 * kGuestPage, 50 * kGuestPage),
        0);
  }
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  auto recorder = WorkingSetRecorder::start(memory, pages).value();
  std::set<std::uint64_t> data;
  for (std::uint64_t page = 95; page < 155; ++page) {
    touch(memory, page);
    if (page < 100 || page >= 150) {
      data.insert(page);
    }
  }
  const bool exact = recorder->exact();
  const auto recording = recorder->finish().value();
  const auto recorded = pages_of(recording.runs);
  EXPECT_EQ(recording.pages, recorded.size());
  EXPECT_THAT(recorded, IsSupersetOf(data));
  EXPECT_TRUE(std::none_of(recorded.begin(), recorded.end(),
                           [](std::uint64_t page) { return page >= 100 && page < 150; }));
  if (exact) {
    std::vector<PageRun> want;
    for (const std::uint64_t page : data) {
      const bool written = page % 3 == 0;
      if (want.empty() || want.back().page + want.back().count != page || want.back().written != written) {
        want.push_back({.page = static_cast<std::uint32_t>(page), .count = 0, .written = written});
      }
      ++want.back().count;
    }
    EXPECT_EQ(recording.runs, want);
  }
}

TEST(WorkingSetRecorder, without_room_for_more_runs_has_the_first_ones) {
  const Guest guest;
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  for (std::uint64_t page = 0; page < kPages; page += 64) {
    touch(memory, page);
  }
  auto recorder = WorkingSetRecorder::start(memory, pages, {}, 10).value();
  const auto recording = recorder->finish().value();
  EXPECT_FALSE(recording.whole);
  EXPECT_EQ(recording.runs.size(), 10U);
  EXPECT_EQ(recording.runs.front().page, 0U);
}

TEST(WorkingSetRecorder, other_memory_is_refused) {
  const GuestMemory memory = GuestMemory::create(two_ranges(), Backing::kAnonymous).value();
  const PageMap pages = PageMap::open().value();
  const auto recorder = WorkingSetRecorder::start(memory, pages);
  ASSERT_FALSE(recorder);
  EXPECT_EQ(recorder.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(recorder.error().message(), HasSubstr("not of anonymous"));
}

TEST(WorkingSetRecorder, that_cannot_be_confined_records_nothing_and_says_why) {
  const Guest guest;
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  auto recorder = WorkingSetRecorder::start(memory, pages, [] {
                    return fail(ErrorCode::kInternal, "no filter");
                  }).value();
  EXPECT_EQ(recorder->wait_confined().error().message(), "no filter");
  touch(memory, 1);
  EXPECT_EQ(recorder->finish().error().message(), "no filter");
  EXPECT_EQ(recorder->pages(), 0U);
}

TEST(WorkingSetRecorder, may_end_at_any_moment_without_being_finished) {
  const Guest guest;
  GuestMemory memory = guest.map();
  const PageMap pages = PageMap::open().value();
  for (unsigned round = 0; round < 100; ++round) {
    auto recorder = WorkingSetRecorder::start(memory, pages).value();
    touch(memory, round);
    if (round % 3 == 0) {
      std::this_thread::yield();
    }
  }
}

}  // namespace
}  // namespace mayfly
