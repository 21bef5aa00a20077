// The names of system calls, for who reads a log.
#pragma once

#include <string_view>

namespace mayfly {

// The name of the system call with this number on this processor, as the kernel has it; empty where it was
// not known yet when the program was built. Async-signal-safe.
std::string_view syscall_name(int number) noexcept;

}  // namespace mayfly
