#include "mayfly/merge.h"

#include <fcntl.h>

#include "base/atomic_file.h"
#include "base/unique_fd.h"
#include "memory/memory_file.h"

namespace mayfly {

Result<void> merge_memory(const std::string& base, const std::vector<std::string>& diffs,
                          const std::string& output) {
  constexpr const char* kBaseRole = "snapshot memory file";
  constexpr const char* kDiffRole = "memory file of a Diff snapshot";
  MAYFLY_TRY_ASSIGN(const UniqueFd from, open_file(base, O_RDONLY | O_NONBLOCK, kBaseRole));
  MAYFLY_TRY_ASSIGN(AtomicFile to, AtomicFile::create(output, kBaseRole));
  const NamedFile result{to.descriptor(), to.name()};
  const std::string base_name = std::string(kBaseRole) + " " + base;
  MAYFLY_TRY(copy_memory_file({from, base_name}, result, {}));
  for (const std::string& path : diffs) {
    MAYFLY_TRY_ASSIGN(const UniqueFd diff, open_file(path, O_RDONLY | O_NONBLOCK, kDiffRole));
    const std::string diff_name = std::string(kDiffRole) + " " + path;
    MAYFLY_TRY(apply_diff({diff, diff_name}, result, {}));
  }
  return to.commit();
}

}  // namespace mayfly
