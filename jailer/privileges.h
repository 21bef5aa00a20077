// Giving up root: user and group, capabilities, and every way to get them back.
#pragma once

#include <sys/types.h>

#include "base/result.h"

namespace mayfly::jail {

// All of it concerns the calling thread only, not its process as the C library's functions would: another
// thread keeps what it has (see UndoThread). Each step is read back.

// Leaves the caller's session keyring, whose keys a process may use whoever it becomes (keyrings(7)).
Result<void> leave_keyring();
// Empties the bounding and the ambient set of capabilities: nothing that is executed can gain one.
Result<void> empty_bounding_set();
// Becomes user and group, without supplementary groups unless `keep_groups` (a user namespace of an ordinary
// user cannot drop them).
Result<void> become(uid_t user, gid_t group, bool keep_groups);
// The effective, permitted and inheritable set.
Result<void> drop_capabilities();
// What is executed gets no privileges by its file's owner or capabilities (prctl(2), PR_SET_NO_NEW_PRIVS).
Result<void> forbid_new_privileges();

}  // namespace mayfly::jail
