#include "memory/write_tracker.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "memory/memory_file.h"
#include "support/poor_host.h"

namespace mayfly {

// How GoogleTest names the parameter of a case.
// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for this name
static void PrintTo(Backing backing, std::ostream* out) {
  *out << to_string(backing);
}

namespace {

constexpr std::uint64_t kPage = 4096;

std::vector<GuestRange> two_ranges() {
  return {GuestRange::make(GuestAddress(0), 1300 * kPage).value(),
          GuestRange::make(GuestAddress(1ULL << 32), 70 * kPage).value()};
}

UniqueFd file_of(std::byte value) {
  UniqueFd file(::memfd_create("memory_file", MFD_CLOEXEC));
  const std::vector<std::byte> bytes(1370 * kPage, value);
  EXPECT_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return file;
}

class Tracked : public ::testing::TestWithParam<Backing> {
 protected:
  const PageMap pages_ = PageMap::open().value();
  GuestMemory memory_ = GetParam() == Backing::kPrivateFile
                            ? GuestMemory::map_file(two_ranges(), file_of(std::byte{1}), "file").value()
                            : GuestMemory::create(two_ranges(), GetParam()).value();
};
INSTANTIATE_TEST_SUITE_P(WriteTracker, Tracked,
                         ::testing::Values(Backing::kAnonymous, Backing::kTransparentHuge,
                                           Backing::kPrivateFile));

TEST_P(Tracked, every_write_is_told_once_whoever_made_it_and_no_read_is) {
  ASSERT_TRUE(memory_.fill(GuestAddress(0), 600 * kPage, std::byte{2}));
  auto tracker = WriteTracker::start(memory_, pages_);
  if (!tracker && tracker.error().code() == ErrorCode::kUnsupported) {
    GTEST_SKIP() << tracker.error().message();
  }
  ASSERT_TRUE(tracker) << tracker.error().message();
  const UniqueFd file = file_of(std::byte{3});
  std::mt19937 random(1);  // NOLINT(cert-msc51-cpp): the same run each time
  for (int round = 0; round < 30; ++round) {
    PageSet expected = no_pages(memory_);
    for (int step = 0; step < 40; ++step) {
      const std::size_t index = random() % 2;
      const std::uint64_t page = random() % (index == 0 ? 1300 : 70);
      const GuestAddress at =
          *memory_.regions()[index].range.base().checked_add(page * kPage + random() % 4000);
      const auto slice = memory_.slice(at, 8).value();
      switch (random() % 5) {
        case 0:
          slice.set_object(0, std::uint64_t{0});
          break;
        case 1:
          ASSERT_TRUE(memory_.write_object(at, std::uint8_t{7}));
          break;
        case 2: {  // as a device reads a disk
          const iovec into = slice.for_system_call();
          ASSERT_EQ(::preadv(file.get(), &into, 1, 0), 8);
          break;
        }
        default:
          ASSERT_TRUE(memory_.read_object<char>(at));
          continue;
      }
      expected[index][page / 64] |= 1ULL << (page % 64);
    }
    // Transparent huge pages that appear whole have every page written: with zeros.
    const PageSet taken = take_dirty_pages(memory_, *tracker).value();
    if (GetParam() == Backing::kTransparentHuge) {
      PageSet both = expected;
      add_pages(both, taken);
      ASSERT_EQ(both, taken) << "round " << round;
    } else {
      ASSERT_EQ(taken, expected) << "round " << round;
    }
  }
  EXPECT_EQ(count_pages(take_dirty_pages(memory_, *tracker).value()), 0U);
  EXPECT_EQ(tracker->take_dirty_pages(2).error().code(), ErrorCode::kOutOfRange);
}

TEST(WriteTracker, what_cannot_be_tracked_is_refused) {
  const PageMap pages = PageMap::open().value();
  const GuestMemory shared = GuestMemory::create(two_ranges(), Backing::kMemfd).value();
  const auto refused = WriteTracker::start(shared, pages);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message(), "a log of writes to guest memory: not of memfd");
  const GuestMemory memory = GuestMemory::create(two_ranges(), Backing::kAnonymous).value();
  testing::where_refused(SYS_ioctl, EINVAL, [&] {
    EXPECT_EQ(WriteTracker::start(memory, pages).error().message(),
              "a log of writes to guest memory: it takes Linux 6.7");
  });
  testing::where_refused(SYS_userfaultfd, EPERM, [&] {
    EXPECT_EQ(WriteTracker::start(memory, pages).error().code(), ErrorCode::kPermission);
  });
}

}  // namespace
}  // namespace mayfly
