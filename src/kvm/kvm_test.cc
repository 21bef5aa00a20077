#include "kvm/kvm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mayfly {
namespace {

using testing::HasSubstr;

TEST(KvmOpen, a_missing_device_says_what_to_load_and_enable) {
  const auto opened = Kvm::open("/nonexistent/kvm");
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), ErrorCode::kNotFound);
  EXPECT_THAT(opened.error().message(), HasSubstr("/nonexistent/kvm"));
  EXPECT_THAT(opened.error().message(), HasSubstr("kvm-intel or kvm-amd"));
  EXPECT_THAT(opened.error().message(), HasSubstr("nested virtualization"));
}

TEST(KvmOpen, a_device_that_this_user_may_not_open_says_which_group_helps) {
  // Nobody may write a constant of the kernel's, root included.
  const auto opened = Kvm::open("/proc/sys/kernel/ostype");
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), ErrorCode::kPermission);
  EXPECT_THAT(opened.error().message(), HasSubstr("join the group that owns it"));
}

TEST(KvmOpen, a_device_that_is_no_kvm_is_told) {
  const auto opened = Kvm::open("/dev/null");
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(opened.error().message(), HasSubstr("/dev/null"));
  EXPECT_THAT(opened.error().message(), HasSubstr("not a KVM device"));
}

}  // namespace
}  // namespace mayfly
