// The calling thread's name, as `ps`, logs and other tools see it.
#pragma once

#include <string_view>

namespace mayfly {

// Names the calling thread; the kernel keeps the first 15 bytes.
void set_thread_name(std::string_view name);

// The name; asked of the kernel at a thread's first call, remembered then, so that writing a line of log
// takes no other system call. Async-signal-safe from the second call of a thread on. The view holds as long
// as the thread lives.
std::string_view thread_name();

}  // namespace mayfly
