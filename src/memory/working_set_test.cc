#include "memory/working_set.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/atomic_file.h"
#include "base/crc64.h"
#include "base/file.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

constexpr std::size_t kHeader = 32;
constexpr WorkingSetOwner kOwner = {.memory_size = 64 * kGuestPage, .snapshot = 0x1122334455667788};
const std::vector<PageRun> kRuns = {{40, 3}, {0, 1, true}, {63, 1}, {10, 20, true}};

UniqueFd file_of(const Bytes& bytes) {
  UniqueFd fd(::memfd_create("working_set", MFD_CLOEXEC));
  EXPECT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return fd;
}

Bytes bytes_of(const std::vector<PageRun>& runs, const WorkingSetOwner& owner = kOwner) {
  const UniqueFd fd = file_of({});
  EXPECT_TRUE(write_working_set({fd, "set"}, owner, runs));
  Bytes bytes(static_cast<std::size_t>(::lseek(fd.get(), 0, SEEK_END)));
  EXPECT_EQ(::pread(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

void put(Bytes& bytes, std::size_t at, std::uint64_t value, std::size_t width) {
  for (std::size_t index = 0; index < width; ++index) {
    bytes.at(at + index) = static_cast<std::byte>(value >> (8 * index));
  }
}

// With a checksum that is right.
Bytes sealed(Bytes bytes) {
  const std::size_t end = bytes.size() - 8;
  put(bytes, end, crc64(std::span(bytes).first(end)), 8);
  return bytes;
}

Result<std::vector<PageRun>> read(const UniqueFd& fd, const WorkingSetOwner& owner = kOwner) {
  MAYFLY_TRY_ASSIGN(const WorkingSet set, WorkingSet::read({fd, "set"}, owner));
  std::vector<PageRun> runs;
  for (std::size_t index = 0; index < set.size(); ++index) {
    runs.push_back(set[index]);
  }
  return runs;
}

Error refusal(const Bytes& bytes, const WorkingSetOwner& owner = kOwner) {
  const auto runs = read(file_of(bytes), owner);
  EXPECT_FALSE(runs.has_value());
  return runs ? Error(ErrorCode::kInternal, "accepted") : runs.error();
}

// A set that says of itself that it is right, with `runs`.
Error refusal_of_runs(const std::vector<PageRun>& runs) {
  Bytes bytes = bytes_of(std::vector<PageRun>(runs.size(), PageRun{.page = 0, .count = 1}),
                         {.memory_size = kGuestPage * runs.size() * 64, .snapshot = kOwner.snapshot});
  put(bytes, 16, kOwner.memory_size, 8);
  for (std::size_t index = 0; index < runs.size(); ++index) {
    put(bytes, kHeader + 8 * index, runs[index].page, 4);
    put(bytes, kHeader + 8 * index + 4, runs[index].count, 4);
  }
  return refusal(sealed(bytes));
}

TEST(WorkingSet, what_was_written_is_read_in_its_order) {
  const testing::TempDir directory;
  auto file = AtomicFile::create(directory.file("set"), "working set").value();
  ASSERT_TRUE(write_working_set({file.descriptor(), file.name()}, kOwner, kRuns));
  ASSERT_TRUE(file.commit());
  const UniqueFd fd = open_file(directory.file("set"), O_RDONLY, "working set").value();
  EXPECT_EQ(read(fd).value(), kRuns);
}

TEST(WorkingSet, pages_are_those_of_all_runs) {
  const UniqueFd fd = file_of(bytes_of(kRuns));
  const WorkingSet set = WorkingSet::read({fd, "set"}, kOwner).value();
  EXPECT_EQ(set.pages(), 25U);
  EXPECT_EQ(set.size(), 4U);
}

TEST(WorkingSet, without_a_run_is_one) {
  EXPECT_TRUE(read(file_of(bytes_of({}))).value().empty());
}

TEST(WorkingSet, the_bytes_are_those_that_the_header_names) {
  const Bytes bytes = bytes_of({{2, 3}, {7, 2, true}});
  Bytes want(56);
  put(want, 0, 0x1a0a0d5357464d89, 8);
  put(want, 8, 2, 4);
  put(want, 12, 2, 4);
  put(want, 16, kOwner.memory_size, 8);
  put(want, 24, kOwner.snapshot, 8);
  put(want, 32, 2, 4);
  put(want, 36, 3, 4);
  put(want, 40, 7, 4);
  put(want, 44, 0x80000002, 4);
  EXPECT_EQ(bytes, sealed(want));
}

TEST(WorkingSet, a_file_of_version_1_is_read_and_knows_of_no_written_page) {
  Bytes bytes = bytes_of({{2, 3}, {40, 1}});
  put(bytes, 8, 1, 4);
  EXPECT_EQ(read(file_of(sealed(bytes))).value(), (std::vector<PageRun>{{2, 3}, {40, 1}}));
  put(bytes, 36, 0x80000003, 4);
  EXPECT_THAT(refusal(sealed(bytes)).message(), HasSubstr("run 0 is none"));
}

TEST(WorkingSet, any_bit_that_is_another_is_refused) {
  const Bytes bytes = bytes_of(kRuns);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    Bytes damaged = bytes;
    damaged[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    EXPECT_THAT(refusal(damaged).message(), HasSubstr("set: ")) << "bit " << bit;
  }
}

TEST(WorkingSet, any_other_length_is_refused) {
  const Bytes bytes = bytes_of(kRuns);
  for (std::size_t size = 0; size < bytes.size() + 64; ++size) {
    if (size != bytes.size()) {
      Bytes other = bytes;
      other.resize(size);
      EXPECT_EQ(refusal(other).code(), ErrorCode::kInvalidImage) << size;
      if (size >= kHeader + 8) {
        EXPECT_EQ(refusal(sealed(other)).code(), ErrorCode::kInvalidImage) << size;
      }
    }
  }
}

TEST(WorkingSet, a_file_of_another_kind_is_refused) {
  EXPECT_THAT(refusal(Bytes(100)).message(), HasSubstr("not a working set"));
  const UniqueFd directory = open_file("/", O_RDONLY | O_DIRECTORY, "root").value();
  EXPECT_THAT(read(directory).error().message(), HasSubstr("not a regular file"));
}

TEST(WorkingSet, a_file_larger_than_any_set_is_refused_before_it_is_read) {
  const UniqueFd fd = file_of({});
  ASSERT_EQ(::ftruncate(fd.get(), off_t{1} << 40), 0);
  EXPECT_THAT(read(fd).error().message(), HasSubstr("no working set has 1099511627776 bytes"));
}

TEST(WorkingSet, another_version_is_refused_by_its_number) {
  Bytes bytes = bytes_of(kRuns);
  put(bytes, 8, 3, 4);
  const Error error = refusal(sealed(bytes));
  EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
  EXPECT_THAT(error.message(), HasSubstr("version 3, and this program reads versions 1 and 2"));
}

TEST(WorkingSet, of_other_memory_or_another_snapshot_is_refused) {
  const Bytes bytes = bytes_of(kRuns);
  EXPECT_THAT(refusal(bytes, {.memory_size = 65 * kGuestPage, .snapshot = kOwner.snapshot}).message(),
              HasSubstr("is of 262144 bytes of memory, not of 266240"));
  EXPECT_THAT(refusal(bytes, {.memory_size = kOwner.memory_size, .snapshot = 0}).message(),
              HasSubstr("another snapshot"));
}

TEST(WorkingSet, runs_that_are_none_of_the_file_are_refused) {
  EXPECT_THAT(refusal_of_runs({{0, 1}, {1, 0}}).message(), HasSubstr("run 1 is none"));
  EXPECT_THAT(refusal_of_runs({{64, 1}}).message(), HasSubstr("run 0 is none"));
  EXPECT_THAT(refusal_of_runs({{63, 2}}).message(), HasSubstr("run 0 is none"));
  EXPECT_THAT(refusal_of_runs({{1, 0x7fffffff}}).message(), HasSubstr("run 0 is none"));
  EXPECT_THAT(refusal_of_runs({{1, 0x80000000}}).message(), HasSubstr("run 0 is none"));
  EXPECT_THAT(refusal_of_runs({{1, 0xffffffff}}).message(), HasSubstr("run 0 is none"));
  EXPECT_THAT(refusal_of_runs({{0, 64}, {0, 1}}).message(), HasSubstr("run 1 is none"))
      << "more than there are";
}

TEST(WorkingSet, a_count_that_the_file_has_no_room_for_is_refused) {
  Bytes bytes = bytes_of(kRuns);
  put(bytes, 12, 0xffffffff, 4);
  EXPECT_THAT(refusal(sealed(bytes)).message(), HasSubstr("not as many runs"));
}

TEST(WorkingSet, runs_that_no_reader_would_take_are_not_written) {
  const UniqueFd fd = file_of({});
  const NamedFile file = {fd, "set"};
  EXPECT_EQ(write_working_set(file, kOwner, std::vector<PageRun>{{64, 1}}).error().code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(write_working_set(file, {.memory_size = 1ULL << 40},
                              std::vector<PageRun>(kMaxWorkingSetRuns + 1, PageRun{.page = 0, .count = 1}))
                .error()
                .code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(::lseek(fd.get(), 0, SEEK_END), 0);
}

TEST(WorkingSet, the_largest_one_is_read) {
  const std::vector<PageRun> runs(kMaxWorkingSetRuns, PageRun{.page = 7, .count = 1});
  const WorkingSetOwner owner = {.memory_size = 1ULL << 40};
  EXPECT_EQ(read(file_of(bytes_of(runs, owner)), owner).value(), runs);
}

TEST(WorkingSet, a_disk_that_is_full_is_told) {
  const UniqueFd full = open_file("/dev/full", O_WRONLY, "full disk").value();
  EXPECT_EQ(write_working_set({full, "set"}, kOwner, kRuns).error().code(), ErrorCode::kExhausted);
}

}  // namespace
}  // namespace mayfly
