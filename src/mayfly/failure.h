// Why the program ends without the outcome of a microVM.
#pragma once

#include <string>
#include <tl/expected.hpp>
#include <utility>

#include "base/error.h"
#include "base/exit_code.h"

namespace mayfly {

// What to tell, and the exit code that says whose fault it is: kBadArguments for the command line,
// kBadConfiguration for the microVM that was asked for, kError for the host.
struct Failure {
  ExitCode exit_code;
  std::string message;

  Failure(ExitCode code, std::string text) : exit_code(code), message(std::move(text)) {}
  // NOLINTNEXTLINE(google-explicit-constructor): an error is the host's unless the caller says otherwise
  Failure(const Error& from_host) : Failure(ExitCode::kError, from_host.message()) {}
};

template <typename T>
using OrFailure = tl::expected<T, Failure>;

// For map_error(): the same error, with this exit code.
inline auto with_code(ExitCode code) {
  return [code](const Error& error) { return Failure(code, error.message()); };
}
// The same for what a flag asks for: kBadArguments, and the flag is named.
inline auto blame_flag(const char* flag) {
  return
      [flag](const Error& error) { return Failure(ExitCode::kBadArguments, error.within(flag).message()); };
}

}  // namespace mayfly
