// With KVM it is tested by frame_ahead_device_test.cc.
#include "vmm/frame_ahead.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <cerrno>

#include "support/held.h"
#include "support/memory_of_file.h"
#include "support/poor_host.h"

namespace mayfly {
namespace {

TEST(FrameAhead, where_kvm_cannot_be_opened_no_timer_is_waited_for_and_all_goes_with_its_owner) {
  const auto before = testing::held();
  testing::where_refused(SYS_openat, EACCES, [] {
    HostKvm host;
    host.start(HostKvm::Purpose::kUse);
    FrameAhead frame(testing::memory_of_file(), 2, 2, &host);
    EXPECT_EQ(frame.backing(), Backing::kPrivateFile);
    frame.create_timer();
    EXPECT_FALSE(host.take(nullptr).has_value());
  });
  EXPECT_EQ(testing::held(), before);
}

TEST(FrameAhead, of_a_host_that_has_nothing_is_not_waited_for) {
  const auto before = testing::held();
  {
    HostKvm host;  // not started
    FrameAhead frame(testing::memory_of_file(), 2, 2, &host);
    EXPECT_NE(testing::held(), before) << "its memory is there";
    frame.create_timer();
    FrameAhead alone(testing::memory_of_file(), 2, 2, nullptr);
    alone.create_timer();
  }
  EXPECT_EQ(testing::held(), before);
}

TEST(FrameAhead, may_be_given_up_at_once_where_kvm_cannot_be_opened) {
  const auto before = testing::held();
  testing::where_refused(SYS_openat, EACCES, [] {
    HostKvm host;
    host.start(HostKvm::Purpose::kUse);
    const FrameAhead frame(testing::memory_of_file(), 2, 2, &host);
  });
  EXPECT_EQ(testing::held(), before);
}

}  // namespace
}  // namespace mayfly
