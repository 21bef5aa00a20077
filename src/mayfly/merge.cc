#include "mayfly/merge.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/atomic_file.h"
#include "base/file.h"
#include "base/unique_fd.h"
#include "devices/vmgenid/vmgenid.h"
#include "memory/guest_memory.h"
#include "memory/memory_file.h"
#include "vmm/arch.h"

namespace mayfly {
namespace {

// What is at `place` in the page of the VM generation id: RAM, and so every memory file, begins at address 0.
std::uint64_t offset_of(std::uint64_t place) {
  return vm_gen_id_page().value() + place;
}

Result<RandomId> read_id(const NamedFile& file, std::uint64_t place) {
  RandomId id{};
  // Of a file that ends before, zeros: no guest has so little memory.
  MAYFLY_TRY(read_at(file.fd, offset_of(place), {.iov_base = id.data(), .iov_len = id.size()}, file.name));
  return id;
}

}  // namespace

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
    // Onto what it was taken after, and nothing else: one that is left out would leave its pages as they
    // were.
    MAYFLY_TRY_ASSIGN(const RandomId wanted, read_id({diff, diff_name}, kSnapshotBaseOffset));
    MAYFLY_TRY_ASSIGN(const RandomId found, read_id(result, kSnapshotMarkOffset));
    if (wanted != RandomId{} && wanted != found) {
      return fail(ErrorCode::kInvalidArgument,
                  diff_name +
                      ": is a diff to another snapshot than what is before it; each goes onto the one that "
                      "it was taken after");
    }
    MAYFLY_TRY_ASSIGN(RandomId base_of_result, read_id(result, kSnapshotBaseOffset));
    MAYFLY_TRY(apply_diff({diff, diff_name}, result, {}));
    if (wanted != RandomId{}) {
      MAYFLY_TRY(write_at(result.fd, offset_of(kSnapshotBaseOffset),
                          {.iov_base = base_of_result.data(), .iov_len = base_of_result.size()},
                          result.name));
    }
  }
  return to.commit();
}

}  // namespace mayfly
