// Files of snapshots, put together.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace mayfly {

// The memory file `base` with `diffs`, one after the other, over it, as `output`, which may be `base`: it
// takes the place of what was there whole, or not at all. Errors name the file: kInvalidArgument for files of
// another size than the base, for what is no diff, or one to something else, and where `output` is one of
// the diffs; kInvalidImage for a diff whose holes are not those that it was written with.
Result<void> merge_memory(const std::string& base, const std::vector<std::string>& diffs,
                          const std::string& output);

}  // namespace mayfly
