// A filter of system calls that keeps what runs in a jail from typing into a terminal it was given.
#pragma once

#include <linux/filter.h>

#include <vector>

#include "base/result.h"

namespace mayfly::jail {

// ioctl() with TIOCSTI and TIOCLINUX fails with EPERM; a call of another architecture or ABI ends the
// process; all else is as it was.
std::vector<sock_filter> terminal_filter();

// From now on, and behind execve(), for the calling thread only. It must have no-new-privs.
Result<void> leave_terminals_alone();

}  // namespace mayfly::jail
