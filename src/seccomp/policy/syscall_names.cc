#include "seccomp/policy/syscall_names.h"

namespace mayfly {
namespace {

// By number, each followed by a line's end; numbers between that no call has are empty lines. One text
// instead of an array of pointers, each of which the program's start would have to relocate.
constexpr std::string_view kNames =
#include <mayfly_policy/syscall_names.inc>
    ;

}  // namespace

std::string_view syscall_name(int number) noexcept {
  std::string_view rest = kNames;
  for (int line = 0; line < number && !rest.empty(); ++line) {
    rest.remove_prefix(rest.find('\n') + 1);
  }
  return number < 0 ? std::string_view() : rest.substr(0, rest.find('\n'));
}

}  // namespace mayfly
