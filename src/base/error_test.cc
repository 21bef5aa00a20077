#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "base/result.h"

namespace mayfly {
namespace {

TEST(Error, from_errno_names_the_action_and_the_cause) {
  const Error error = Error::from_errno(EACCES, "open /dev/kvm");
  EXPECT_EQ(error.message(), "open /dev/kvm: Permission denied (EACCES)");
  EXPECT_EQ(error.code(), ErrorCode::kPermission);
  EXPECT_EQ(error.os_errno(), EACCES);
}

TEST(Error, an_unknown_errno_is_given_as_a_number) {
  EXPECT_EQ(Error::from_errno(9999, "x").message(), "x: unknown error (9999)");
}

TEST(Error, within_puts_the_outer_context_first_and_keeps_the_kind) {
  const Error error = Error::from_errno(ENOENT, "open /k").within("boot-source");
  EXPECT_EQ(error.message(), "boot-source: open /k: No such file or directory (ENOENT)");
  EXPECT_EQ(error.code(), ErrorCode::kNotFound);
  EXPECT_EQ(error.os_errno(), ENOENT);
}

Result<int> half(int value) {
  if (value % 2 != 0) {
    return fail(ErrorCode::kOutOfRange, "odd");
  }
  return value / 2;
}

Result<int> quarter(int value) {
  MAYFLY_TRY(half(value));
  MAYFLY_TRY_ASSIGN(const int once, half(value));
  return half(once);
}

TEST(Result, try_macros_pass_values_on_and_return_errors) {
  EXPECT_EQ(quarter(8).value(), 2);
  EXPECT_EQ(quarter(7).error().message(), "odd");
  EXPECT_EQ(quarter(6).error().code(), ErrorCode::kOutOfRange);
}

}  // namespace
}  // namespace mayfly
