// Removing what a jail left whose monitor has ended.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "options.h"

namespace mayfly::jail {

// The processes of which a thread has this root directory; of those that this user may look at.
Result<std::vector<std::string>> processes_in(const UniqueFd& root, const std::string& proc);

// Removes the jail's folder with everything in it, and its cgroups. What is not there is fine, so that it can
// be run again at any time. Refuses a jail in which something runs, or which another jailer is making.
Result<void> clean_up(const Options& options);

}  // namespace mayfly::jail
