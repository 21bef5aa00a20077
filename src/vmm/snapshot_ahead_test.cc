#include "vmm/snapshot_ahead.h"

#include <gtest/gtest.h>

#include <fstream>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

// With a snapshot it is tested by `mayfly restore` (tests/integration/snapshot_test.py).
class SnapshotAheadOf : public ::testing::Test {
 protected:
  bool finds(const LoadRequest& request) { return SnapshotAhead(request, host_).take(nullptr).has_value(); }

  const testing::TempDir dir_;
  HostKvm host_;  // not started: it has nothing
};

TEST_F(SnapshotAheadOf, files_that_are_not_there_or_no_snapshot_has_nothing_and_says_nothing) {
  EXPECT_FALSE(finds({.state_path = dir_.file("state"), .memory_path = dir_.file("memory")}));
  std::ofstream(dir_.file("state")) << "state";
  EXPECT_FALSE(finds({.state_path = dir_.file("state"), .memory_path = dir_.file("memory")}));
  EXPECT_FALSE(finds({.state_path = "/", .memory_path = "/"}));
}

TEST_F(SnapshotAheadOf, memory_that_a_handler_brings_has_nothing) {
  EXPECT_FALSE(finds(
      {.state_path = dir_.file("state"), .memory_path = dir_.file("socket"), .memory_from_handler = true}));
}

}  // namespace
}  // namespace mayfly
