#include "memory/precopy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "support/poor_host.h"

namespace mayfly {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kFirst = 130 * kPage;
constexpr std::uint64_t kSecond = 70 * kPage;

GuestMemory two_regions() {
  return GuestMemory::create(std::vector{GuestRange::make(GuestAddress(0), kFirst).value(),
                                         GuestRange::make(GuestAddress(1ULL << 32), kSecond).value()},
                             Backing::kAnonymous)
      .value();
}

UniqueFd empty_file() {
  return UniqueFd(::memfd_create("memory_file", MFD_CLOEXEC));
}

NamedFile named(const UniqueFd& fd) {
  return {fd, "memory file /m"};
}

// What the file holds, and RAM, must be the same.
void expect_same(const GuestMemory& memory, const UniqueFd& file) {
  for (const MemoryRegion& region : memory.regions()) {
    Bytes ram(region.range.size());
    Bytes saved(region.range.size());
    ASSERT_TRUE(memory.read(region.range.base(), ram));
    ASSERT_EQ(read_at(file, region.backing_offset, {saved.data(), saved.size()}, "file").value(),
              saved.size());
    ASSERT_EQ(ram, saved);
  }
}

// A log as KVM keeps one: a page is in it from some moment of its being written on.
class FakeLog final : public DirtyPageSource {
 public:
  FakeLog() : first_((kFirst / kPage + 63) / 64), second_((kSecond / kPage + 63) / 64) {}

  void mark(std::size_t region, std::uint64_t page) {
    words(region)[page / 64].fetch_or(1ULL << (page % 64));
  }
  Result<std::vector<std::uint64_t>> take_dirty_pages(std::size_t region) override {
    if (before_take && region == 0) {
      before_take();
    }
    std::vector<std::uint64_t> taken;
    for (auto& word : words(region)) {
      taken.push_back(word.exchange(0));
    }
    if (fails) {
      return fail(ErrorCode::kIo, "read the dirty log: it is broken");
    }
    return taken;
  }

  std::function<void()> before_take;
  bool fails = false;

 private:
  std::vector<std::atomic<std::uint64_t>>& words(std::size_t region) {
    return region == 0 ? first_ : second_;
  }

  std::vector<std::atomic<std::uint64_t>> first_;
  std::vector<std::atomic<std::uint64_t>> second_;
};

class Precopy : public ::testing::Test {
 protected:
  void write(std::size_t region, std::uint64_t page, std::uint8_t value) {
    ASSERT_TRUE(memory_.fill(*memory_.regions()[region].range.base().checked_add(page * kPage), kPage,
                             static_cast<std::byte>(value)));
    log_.mark(region, page);
  }
  // `counts[n]` pages become dirty before round n.
  void dirty_in_rounds(std::vector<std::uint64_t> counts) {
    log_.before_take = [this, counts = std::move(counts), round = std::size_t{0}]() mutable {
      for (std::uint64_t page = 0; round < counts.size() && page < counts[round]; ++page) {
        write(page % 2, page / 2, static_cast<std::uint8_t>(round + 1));
      }
      ++round;
    };
  }

  GuestMemory memory_ = two_regions();
  FakeLog log_;
  UniqueFd file_ = empty_file();
};

TEST_F(Precopy, rounds_go_on_until_few_pages_remain) {
  ASSERT_TRUE(write_full(memory_, named(file_), {}));
  dirty_in_rounds({100, 40, 11, 10, 99});
  const auto outcome = precopy(memory_, log_, named(file_), {.enough_pages = 10, .most_rounds = 8}, {});
  ASSERT_TRUE(outcome);
  EXPECT_THAT(outcome->rounds, ElementsAre(100, 40, 11));
  EXPECT_TRUE(outcome->converged);
  EXPECT_EQ(count_pages(outcome->remaining), 10U);
  const auto last = finish_precopy(memory_, log_, *outcome, named(file_), {});
  ASSERT_TRUE(last);
  EXPECT_EQ(last->written, 99 * kPage);  // what remained is among them
  expect_same(memory_, file_);
}

TEST_F(Precopy, a_guest_that_writes_ever_on_gets_its_rounds_and_no_more) {
  ASSERT_TRUE(write_full(memory_, named(file_), {}));
  dirty_in_rounds({50, 60, 70, 80, 90});
  const auto outcome = precopy(memory_, log_, named(file_), {.enough_pages = 10, .most_rounds = 3}, {});
  ASSERT_TRUE(outcome);
  EXPECT_THAT(outcome->rounds, ElementsAre(50, 60, 70));
  EXPECT_FALSE(outcome->converged);
  EXPECT_EQ(count_pages(outcome->remaining), 80U);
  log_.before_take = nullptr;
  const auto last = finish_precopy(memory_, log_, *outcome, named(file_), {});
  ASSERT_TRUE(last);
  EXPECT_EQ(last->written, 80 * kPage);
  expect_same(memory_, file_);
}

TEST_F(Precopy, a_quiet_guest_takes_no_round) {
  ASSERT_TRUE(write_full(memory_, named(file_), {}));
  const auto outcome = precopy(memory_, log_, named(file_), {.enough_pages = 0, .most_rounds = 8}, {});
  ASSERT_TRUE(outcome);
  EXPECT_THAT(outcome->rounds, IsEmpty());
  EXPECT_TRUE(outcome->converged);
}

TEST_F(Precopy, no_rounds_leave_all_for_the_pause) {
  ASSERT_TRUE(write_full(memory_, named(file_), {}));
  dirty_in_rounds({50});
  const auto outcome = precopy(memory_, log_, named(file_), {.enough_pages = 10, .most_rounds = 0}, {});
  ASSERT_TRUE(outcome);
  EXPECT_EQ(count_pages(outcome->remaining), 50U);
  EXPECT_FALSE(outcome->converged);
}

TEST_F(Precopy, pages_that_became_zeros_do_not_keep_what_an_earlier_round_wrote) {
  write(0, 3, 7);
  ASSERT_TRUE(write_full(memory_, named(file_), {}));
  log_.before_take = [this, round = 0]() mutable {
    if (round++ == 0) {
      write(0, 3, 0);
      write(1, 5, 9);
    } else if (round == 2) {
      write(1, 5, 0);
    }
  };
  const auto outcome = precopy(memory_, log_, named(file_), {.enough_pages = 0, .most_rounds = 8}, {});
  ASSERT_TRUE(outcome);
  EXPECT_THAT(outcome->rounds, ElementsAre(2, 1));
  expect_same(memory_, file_);
}

TEST_F(Precopy, errors_of_log_and_file_are_handed_on) {
  ASSERT_TRUE(write_full(memory_, named(file_), {}));
  dirty_in_rounds({50, 50});
  testing::where_refused(SYS_pwrite64, EIO, [this] {
    const auto outcome = precopy(memory_, log_, named(file_), {.enough_pages = 10, .most_rounds = 8}, {});
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().message(), "write memory file /m: Input/output error (EIO)");
  });
  log_.fails = true;
  EXPECT_EQ(precopy(memory_, log_, named(file_), {}, {}).error().message(),
            "read the dirty log: it is broken");
  EXPECT_FALSE(
      finish_precopy(memory_, log_, {.remaining = no_pages(memory_), .rounds = {}}, named(file_), {}));
}

TEST_F(Precopy, a_log_of_other_memory_is_refused) {
  const GuestMemory other =
      GuestMemory::create(std::vector{GuestRange::make(GuestAddress(0), 400 * kPage).value()},
                          Backing::kAnonymous)
          .value();
  EXPECT_EQ(take_dirty_pages(other, log_).error().code(), ErrorCode::kInternal);
  DirtyLedger ledger(other, log_);
  EXPECT_EQ(ledger.take_dirty_pages(0).error().code(), ErrorCode::kInternal);
}

TEST_F(Precopy, a_ledger_keeps_what_a_failed_snapshot_took) {
  DirtyLedger ledger(memory_, log_);
  UniqueFd base = empty_file();
  ASSERT_TRUE(write_full(memory_, named(base), {}));
  write(0, 1, 1);
  write(1, 69, 1);
  ASSERT_TRUE(take_dirty_pages(memory_, ledger));
  // Here a disk is full. Later a diff is wanted all the same.
  write(0, 129, 3);
  const PageSet second = take_dirty_pages(memory_, ledger).value();
  EXPECT_EQ(count_pages(second), 1U);
  EXPECT_EQ(count_pages(ledger.since_last()), 3U);
  ASSERT_TRUE(write_over(memory_, ledger.since_last(), named(base), {}));
  expect_same(memory_, base);
  ledger.settle();
  EXPECT_EQ(count_pages(ledger.since_last()), 0U);
  EXPECT_EQ(ledger.since_last(), no_pages(memory_));
}

// A thread plays a vCPU that writes while rounds are written, and stands still for the last pages.
TEST_F(Precopy, a_guest_that_runs_all_the_while_is_saved_as_it_was_when_it_stopped) {
  std::atomic<bool> stop = false;
  std::thread guest([&] {
    std::mt19937 random(5);  // NOLINT(cert-msc51-cpp): the same run each time
    while (!stop.load()) {
      const std::size_t region = random() % 2;
      const std::uint64_t page = random() % (region == 0 ? kFirst / kPage : kSecond / kPage);
      write(region, page, static_cast<std::uint8_t>(random() % 3));
      if (random() % 16 == 0) {
        std::this_thread::yield();
      }
    }
  });
  const auto full = write_full(memory_, named(file_), {});
  const auto outcome = precopy(memory_, log_, named(file_), {.enough_pages = 4, .most_rounds = 30}, {});
  stop = true;
  guest.join();
  ASSERT_TRUE(full);
  ASSERT_TRUE(outcome);
  ASSERT_TRUE(finish_precopy(memory_, log_, *outcome, named(file_), {}));
  expect_same(memory_, file_);
}

}  // namespace
}  // namespace mayfly
