#include "memory/write_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "memory/memory_file.h"

namespace mayfly {
namespace {

constexpr std::uint64_t kPages = 200;
constexpr std::uint64_t kHighPages = 70;
constexpr GuestAddress kHigh{1ULL << 32};

class Noted : public ::testing::Test {
 protected:
  static GuestMemory make() {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), kPages * kGuestPage),
                               *GuestRange::make(kHigh, kHighPages * kGuestPage)};
    return GuestMemory::create(ranges, Backing::kAnonymous).value();
  }
  static GuestAddress at(std::uint64_t page, std::uint64_t offset = 0) {
    return GuestAddress(page * kGuestPage + offset);
  }
  // All that was noted since the last time, of the low range as page numbers.
  std::vector<std::uint64_t> take() {
    std::vector<std::uint64_t> pages;
    const auto words = memory_.take_noted(0).value();
    EXPECT_EQ(words.size(), (kPages + 63) / 64);
    for (std::uint64_t page = 0; page < 64 * words.size(); ++page) {
      if ((words[page / 64] >> (page % 64) & 1) != 0) {
        pages.push_back(page);
      }
    }
    return pages;
  }

  GuestMemory memory_ = make();
};

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST_F(Noted, nothing_is_noted_before_it_is_asked_for_and_after_it_ends) {
  EXPECT_FALSE(memory_.notes_writes());
  ASSERT_TRUE(memory_.write_object(at(1), 1));
  EXPECT_EQ(memory_.take_noted(0).error().code(), ErrorCode::kNotFound);
  memory_.note_writes(true);
  EXPECT_TRUE(memory_.notes_writes());
  EXPECT_THAT(take(), IsEmpty());
  ASSERT_TRUE(memory_.write_object(at(2), 1));
  memory_.note_writes(true);
  EXPECT_THAT(take(), ElementsAre(2)) << "on already: it goes on";

  ASSERT_TRUE(memory_.write_object(at(3), 1));
  memory_.note_writes(false);
  ASSERT_TRUE(memory_.write_object(at(4), 1));
  EXPECT_EQ(memory_.take_noted(0).error().code(), ErrorCode::kNotFound);
  memory_.note_writes(true);
  EXPECT_THAT(take(), IsEmpty()) << "it begins anew";
  EXPECT_EQ(memory_.take_noted(2).error().code(), ErrorCode::kOutOfRange);
}

TEST_F(Noted, every_way_to_write_is_noted_and_no_way_to_read) {
  memory_.note_writes(true);
  ASSERT_TRUE(memory_.write(at(1, 4000), std::vector<std::byte>(200)));
  EXPECT_THAT(take(), ElementsAre(1, 2));
  ASSERT_TRUE(memory_.write_object(at(3, 4095), std::uint8_t{1}));
  EXPECT_THAT(take(), ElementsAre(3));
  ASSERT_TRUE(memory_.fill(at(62, 1), 2 * kGuestPage, std::byte{1}));
  EXPECT_THAT(take(), ElementsAre(62, 63, 64));
  memory_.note_written(at(199), kGuestPage);
  memory_.note_written(at(7), 0);
  EXPECT_THAT(take(), ElementsAre(199));

  ASSERT_TRUE(memory_.read_object<int>(at(6)));
  ASSERT_TRUE(memory_.slice(at(6), 8));
  ASSERT_TRUE(memory_.write(at(6), {}));
  ASSERT_FALSE(memory_.write_object(at(kPages), 1));
  EXPECT_THAT(take(), IsEmpty());
}

TEST_F(Noted, a_file_is_noted_also_where_it_is_too_short) {
  const UniqueFd file(::memfd_create("image", MFD_CLOEXEC));
  const std::vector<std::byte> bytes(kGuestPage + 1, std::byte{1});
  ASSERT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  memory_.note_writes(true);
  ASSERT_TRUE(memory_.load_file(at(10), file, 0, bytes.size(), "image"));
  EXPECT_THAT(take(), ElementsAre(10, 11));
  ASSERT_FALSE(memory_.load_file(at(20), file, kGuestPage, kGuestPage, "image"));
  EXPECT_THAT(take(), ElementsAre(20));
  EXPECT_EQ(memory_.read_object<std::uint8_t>(at(20)).value(), 1);
}

TEST_F(Noted, regions_have_their_own_pages_and_any_stretch_is_noted_whole) {
  memory_.note_writes(true);
  std::mt19937 random(1);  // NOLINT(cert-msc51-cpp): the same run each time
  for (int round = 0; round < 2000; ++round) {
    PageSet expected = no_pages(memory_);
    for (int step = 0; step < 3; ++step) {
      const std::size_t region = random() % 2;
      const std::uint64_t size = (region == 0 ? kPages : kHighPages) * kGuestPage;
      const std::uint64_t offset = random() % size;
      const std::uint64_t length = 1 + random() % (size - offset);
      memory_.note_written(*memory_.regions()[region].range.base().checked_add(offset), length);
      for (std::uint64_t page = offset / kGuestPage; page * kGuestPage < offset + length; ++page) {
        expected[region][page / 64] |= 1ULL << (page % 64);
      }
    }
    const PageSet taken = {memory_.take_noted(0).value(), memory_.take_noted(1).value()};
    ASSERT_EQ(taken, expected) << "round " << round;
  }
}

TEST_F(Noted, the_record_moves_with_its_memory) {
  memory_.note_writes(true);
  ASSERT_TRUE(memory_.write_object(at(1), 1));
  GuestMemory other = make();
  other = std::move(memory_);
  ASSERT_TRUE(other.write_object(at(2), 1));
  EXPECT_EQ(other.take_noted(0).value()[0], 6U);
  EXPECT_FALSE(memory_.notes_writes());  // NOLINT(bugprone-use-after-move): it has no ranges
}

using NotedDeathTest = Noted;

TEST_F(NotedDeathTest, what_is_no_ram_cannot_be_noted) {
  memory_.note_written(at(kPages), 1);  // nobody looks
  memory_.note_writes(true);
  EXPECT_DEATH(memory_.note_written(at(kPages - 1), kGuestPage + 1), "lies in guest RAM");
}

// Whoever takes and then copies has, of every write that was over before it began, that one or a later one:
// what a mark before the writing would break, and one that is no atomic step.
TEST_F(Noted, no_write_that_is_over_is_missed_by_who_takes_meanwhile) {
  constexpr std::uint64_t kWriters = 2;
  constexpr std::uint64_t kOwnPages = 8;  // of each, in turns: they share words of the record
  constexpr std::uint64_t kWrites = 100'000;
  using Values = std::array<std::uint64_t, kWriters * kOwnPages>;
  std::array<std::atomic<std::uint64_t>, kWriters * kOwnPages> over{};
  std::atomic<std::uint64_t> running = kWriters;
  memory_.note_writes(true);
  std::vector<std::thread> writers;
  for (std::uint64_t writer = 0; writer < kWriters; ++writer) {
    writers.emplace_back([&, writer] {
      for (std::uint64_t value = 1; value <= kWrites; ++value) {
        const std::uint64_t page = writer + kWriters * (value % kOwnPages);
        if (value % 2 == 0) {
          EXPECT_TRUE(memory_.write_object<std::uint64_t>(at(page), value));
        } else {  // as a device
          memory_.slice(at(page), sizeof(value))->store<std::uint64_t>(0, value);
          memory_.note_written(at(page), sizeof(value));
        }
        over[page].store(value, std::memory_order_release);
      }
      --running;
    });
  }
  Values copy{};
  std::uint64_t missed = 0;
  for (bool last = false; !last;) {
    last = running == 0;
    Values before;
    std::ranges::transform(over, before.begin(),
                           [](const auto& value) { return value.load(std::memory_order_acquire); });
    const std::uint64_t taken = memory_.take_noted(0).value()[0];
    for (std::uint64_t page = 0; page < copy.size(); ++page) {
      if ((taken >> page & 1) != 0) {
        copy[page] = memory_.slice(at(page), sizeof(std::uint64_t))->load<std::uint64_t>(0);
      }
      missed += copy[page] < before[page] ? 1U : 0U;
    }
  }
  for (std::thread& writer : writers) {
    writer.join();
  }
  EXPECT_EQ(missed, 0U);
}

// Switching while others write is safe, whatever is noted.
TEST_F(Noted, it_can_be_switched_while_others_write) {
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    while (!stop) {
      EXPECT_TRUE(memory_.write_object(at(3), 1));
    }
  });
  for (int round = 0; round < 200; ++round) {
    memory_.note_writes(true);
    EXPECT_TRUE(memory_.take_noted(0));
    memory_.note_writes(false);
  }
  stop = true;
  writer.join();
  memory_.note_writes(true);
  ASSERT_TRUE(memory_.write_object(at(4), 1));
  EXPECT_THAT(take(), ::testing::Contains(4U));
}

}  // namespace
}  // namespace mayfly
