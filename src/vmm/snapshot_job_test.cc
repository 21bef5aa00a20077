#include "vmm/snapshot_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

using ::testing::UnorderedElementsAre;

class SnapshotJobTest : public ::testing::Test {
 protected:
  SnapshotJobTest() {
    for (const std::string& path : {request_.state_path, request_.memory_path}) {
      std::ofstream(path) << "former";
    }
  }

  // A job whose files are written.
  SnapshotJob written() {
    auto job = SnapshotJob::create(request_);
    EXPECT_TRUE(job.has_value()) << job.error().message();
    EXPECT_TRUE(memory_.write_object(GuestAddress(8192), std::uint64_t{0x1122334455667788}));
    EXPECT_TRUE(job->write({.state = std::vector<std::byte>(3, std::byte{'s'}), .memory = &memory_}));
    return std::move(*job);
  }

  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.file(""))) {
      found.push_back(entry.path().filename().string());
    }
    return found;
  }

  testing::TempDir dir_;
  SnapshotRequest request_{.state_path = dir_.file("state"), .memory_path = dir_.file("memory")};
  GuestMemory memory_ =
      GuestMemory::create(std::array{*GuestRange::make(GuestAddress(0), 1U << 20)}, Backing::kAnonymous)
          .value();
};

TEST_F(SnapshotJobTest, both_files_take_the_place_of_the_former_ones) {
  {
    SnapshotJob job = written();
    EXPECT_EQ(testing::read_file(request_.state_path), "former");
    int asked = 0;
    const auto done = job.commit([&asked] {
      ++asked;
      return true;
    });
    ASSERT_TRUE(done.has_value()) << done.error().message();
    EXPECT_GT(asked, 0);
  }
  EXPECT_EQ(testing::read_file(request_.state_path), "sss");
  const std::string memory = testing::read_file(request_.memory_path);
  ASSERT_EQ(memory.size(), memory_.size());
  std::uint64_t value = 0;
  std::memcpy(&value, memory.data() + 8192, sizeof(value));
  EXPECT_EQ(value, 0x1122334455667788U);
  EXPECT_THAT(names(), UnorderedElementsAre("state", "memory"));
}

TEST_F(SnapshotJobTest, one_that_is_not_to_proceed_is_busy_and_leaves_the_former_files) {
  {
    SnapshotJob job = written();
    const auto done = job.commit([] { return false; });
    ASSERT_FALSE(done.has_value());
    EXPECT_EQ(done.error().code(), ErrorCode::kBusy);
  }
  EXPECT_EQ(testing::read_file(request_.state_path), "former");
  EXPECT_EQ(testing::read_file(request_.memory_path), "former");
  EXPECT_THAT(names(), UnorderedElementsAre("state", "memory"));
}

TEST_F(SnapshotJobTest, one_file_is_not_both) {
  std::filesystem::create_hard_link(request_.state_path, dir_.file("link"));
  for (const char* name : {"state", "link"}) {
    const auto job = SnapshotJob::create({.state_path = request_.state_path, .memory_path = dir_.file(name)});
    ASSERT_FALSE(job.has_value()) << name;
    EXPECT_EQ(job.error().code(), ErrorCode::kInvalidArgument) << name;
  }
}

}  // namespace
}  // namespace mayfly
