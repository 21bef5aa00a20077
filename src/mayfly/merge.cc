#include "mayfly/merge.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdint>

#include "base/atomic_file.h"
#include "base/file.h"
#include "base/same_file.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"
#include "memory/memory_file.h"
#include "vmm/diff_mark.h"

namespace mayfly {
namespace {

// Whether it has what it was written with. What the marks say, a guest may have written: to mislead itself.
Result<void> check_diff(const NamedFile& file, const MemoryMarks& marks) {
  const std::string name(file.name);
  if (marks.pages.count == 0 && marks.base == RandomId{}) {
    return fail(ErrorCode::kInvalidArgument,
                name + ": is no diff: a whole memory file goes with its state file as it is");
  }
  MAYFLY_TRY_ASSIGN(const DiffPages found, find_diff_pages(file));
  if (marks.pages.count != 0 && found != marks.pages) {
    return fail(ErrorCode::kInvalidImage,
                name + ": a copy has changed its holes, which mean \"as before\": " +
                    std::to_string(found.count) + " pages are there, " + std::to_string(marks.pages.count) +
                    " were written; take a copy that keeps holes (cp, tar -S)");
  }
  // An earlier version wrote it, and did not note which pages.
  struct stat info {};
  if (::fstat(file.fd.get(), &info) != 0) {
    return fail_errno(errno, "look at " + name);
  }
  if (marks.pages.count == 0 && found.count == static_cast<std::uint64_t>(info.st_size) / kGuestPage) {
    return fail(ErrorCode::kInvalidImage,
                name +
                    ": has no hole, which would mean \"as before\": a copy has filled them; take one that "
                    "keeps them (cp, tar -S)");
  }
  return {};
}

}  // namespace

Result<void> merge_memory(const std::string& base, const std::vector<std::string>& diffs,
                          const std::string& output) {
  constexpr const char* kBaseRole = "snapshot memory file";
  constexpr const char* kDiffRole = "memory file of a Diff snapshot";
  for (const std::string& path : diffs) {
    if (same_file(path, output)) {
      return fail(
          ErrorCode::kInvalidArgument,
          std::string(kDiffRole) + " " + path + ": the result would take its place; name another --output");
    }
  }
  MAYFLY_TRY_ASSIGN(const UniqueFd from, open_file(base, O_RDONLY | O_NONBLOCK, kBaseRole));
  MAYFLY_TRY_ASSIGN(AtomicFile to, AtomicFile::create(output, kBaseRole));
  const NamedFile result{to.descriptor(), to.name()};
  const std::string base_name = std::string(kBaseRole) + " " + base;
  MAYFLY_TRY_ASSIGN(const MemoryMarks base_marks, read_memory_marks({from, base_name}));
  const bool onto_diff = base_marks.pages.count != 0 || base_marks.base != RandomId{};
  if (onto_diff) {
    MAYFLY_TRY(check_diff({from, base_name}, base_marks));
  }
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
    MAYFLY_TRY_ASSIGN(const MemoryMarks wanted, read_memory_marks({diff, diff_name}));
    MAYFLY_TRY_ASSIGN(const MemoryMarks found, read_memory_marks(result));
    MAYFLY_TRY(check_diff({diff, diff_name}, wanted));
    // Onto what it was taken after, and nothing else: one that is left out would leave its pages as they
    // were.
    if (wanted.base != RandomId{} && wanted.base != found.mark) {
      return fail(ErrorCode::kInvalidArgument,
                  diff_name +
                      ": is a diff to another snapshot than what is before it; each goes onto the one that "
                      "it was taken after");
    }
    MAYFLY_TRY(apply_diff({diff, diff_name}, result, {}));
    MAYFLY_TRY(write_base_mark(result, wanted.base != RandomId{} ? found.base : RandomId{}));
  }
  if (onto_diff) {
    MAYFLY_TRY(note_diff_pages(result));
  }
  return to.commit();
}

}  // namespace mayfly
