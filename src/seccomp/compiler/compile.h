// From policies to the file that the monitor loads.
#pragma once

#include <span>
#include <string>

#include "base/result.h"
#include "seccomp/compiler/policy.h"

namespace mayfly::seccomp {

// Filters for exactly one policy of each thread, as Filters::parse() takes them: what a policy does not allow
// raises SIGSYS, a call of another architecture's ends the process. Rules are looked at in the order of the
// policy. Errors: kInvalidArgument where a thread has no policy or two; the host's, or libseccomp's.
Result<std::string> compile(std::span<const Policy> policies);

// The names of this processor's system calls by number, each followed by a line's end; an empty line where no
// call has the number.
std::string syscall_names();

}  // namespace mayfly::seccomp
