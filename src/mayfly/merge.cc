#include "mayfly/merge.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/atomic_file.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"
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
  struct stat info {};
  if (::fstat(to.descriptor().get(), &info) != 0) {
    return fail_errno(errno, "look at " + to.name());
  }
  const auto size = static_cast<std::uint64_t>(info.st_size);
  for (const std::string& path : diffs) {
    MAYFLY_TRY_ASSIGN(const UniqueFd diff, open_file(path, O_RDONLY | O_NONBLOCK, kDiffRole));
    const std::string diff_name = std::string(kDiffRole) + " " + path;
    MAYFLY_TRY(check_memory_file(diff, size, diff_name));
    MAYFLY_TRY(apply_diff({diff, diff_name}, result, {}));
  }
  return to.commit();
}

}  // namespace mayfly
