// Result<T>: a value or an Error. Nothing in the project throws across a component's border.
#pragma once

#include <string>
#include <tl/expected.hpp>
#include <utility>

#include "base/error.h"

namespace mayfly {

template <typename T>
using Result = tl::expected<T, Error>;

inline tl::unexpected<Error> fail(ErrorCode code, std::string what) {
  return tl::unexpected<Error>(Error(code, std::move(what)));
}
inline tl::unexpected<Error> fail_errno(int os_errno, std::string_view doing) {
  return tl::unexpected<Error>(Error::from_errno(os_errno, doing));
}

}  // namespace mayfly

#define MAYFLY_CONCAT_INNER(a, b) a##b
#define MAYFLY_CONCAT(a, b) MAYFLY_CONCAT_INNER(a, b)

// Returns the error of a Result expression to the caller, if it is one.
#define MAYFLY_TRY(expression)                                          \
  do {                                                                  \
    auto mayfly_try_result = (expression);                              \
    if (!mayfly_try_result.has_value()) {                               \
      return tl::make_unexpected(std::move(mayfly_try_result.error())); \
    }                                                                   \
  } while (false)

// NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot stand in parentheses
// Declares or assigns `target` from a Result expression, or returns its error to the caller.
#define MAYFLY_TRY_ASSIGN(target, expression)                                               \
  auto MAYFLY_CONCAT(mayfly_result_, __LINE__) = (expression);                              \
  if (!MAYFLY_CONCAT(mayfly_result_, __LINE__).has_value()) {                               \
    return tl::make_unexpected(std::move(MAYFLY_CONCAT(mayfly_result_, __LINE__).error())); \
  }                                                                                         \
  target = std::move(*MAYFLY_CONCAT(mayfly_result_, __LINE__))
// NOLINTEND(bugprone-macro-parentheses)
