#include <gtest/gtest.h>
#include <sys/syscall.h>

#include "seccomp/policy/built_in.h"
#include "seccomp/policy/syscall_names.h"

namespace mayfly {
namespace {

TEST(BuiltInFilters, are_whole) {
  const auto filters = built_in_filters();
  EXPECT_TRUE(filters.has_value()) << filters.error().message();
}

TEST(SyscallNames, are_the_kernels_by_number) {
  EXPECT_EQ(syscall_name(SYS_read), "read");
  EXPECT_EQ(syscall_name(SYS_openat), "openat");
  EXPECT_EQ(syscall_name(SYS_pidfd_send_signal), "pidfd_send_signal");
  EXPECT_EQ(syscall_name(SYS_io_uring_enter), "io_uring_enter");
}

TEST(SyscallNames, a_number_that_no_call_has_is_none) {
#if defined(__x86_64__)
  EXPECT_EQ(syscall_name(400), "");  // numbers of 32-bit processors only
#endif
  for (const int number : {-1, 1000, 0x40000000, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(syscall_name(number), "") << number;
  }
}

}  // namespace
}  // namespace mayfly
