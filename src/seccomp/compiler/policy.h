// What a thread may do, as resources/seccomp and users write it: JSON, one thread a file.
//
//   {
//     "thread": "vcpu",
//     "rules": [
//       {"call": "ioctl", "arguments": [{"index": 1, "equals": "KVM_RUN"}], "reason": "runs the guest"},
//       {"call": "mmap", "arguments": [{"index": 2, "mask": "PROT_EXEC", "equals": 0}], "reason": "..."}
//     ]
//   }
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "seccomp/filters.h"

namespace mayfly::seccomp {

// Holds where (argument & mask) == value.
struct ArgumentTest {
  unsigned index;  // 0 to 5
  std::uint64_t mask;
  std::uint64_t value;
};

// Allows a call whose arguments pass all tests.
struct Rule {
  int number;  // of the system call
  std::vector<ArgumentTest> arguments;
};

struct Policy {
  FilteredThread thread;
  std::vector<Rule> rules;  // in the order of the file; at least one
};

// The longest file, in bytes.
inline constexpr std::size_t kMaxPolicy = 1 << 20;

// Strict: unknown keys, system calls that this processor does not have, names that are no constants, rules
// without a reason and rules given twice are refused. `name` is what errors call the text.
Result<Policy> parse_policy(std::string_view text, std::string_view name);

}  // namespace mayfly::seccomp
