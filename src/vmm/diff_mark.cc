#include "vmm/diff_mark.h"

#include <array>
#include <cstddef>

#include "base/file.h"
#include "vmm/arch.h"

namespace mayfly {
namespace {

// As they lie in the page, without a gap.
static_assert(kSnapshotBaseOffset == kSnapshotMarkOffset + sizeof(RandomId));
static_assert(kDiffPagesOffset == kSnapshotBaseOffset + sizeof(RandomId));
static_assert(sizeof(MemoryMarks) == 2 * sizeof(RandomId) + sizeof(DiffPages));
static_assert(sizeof(DiffPages) == sizeof(RandomId));

std::uint64_t offset_of(std::uint64_t place) {
  return vm_gen_id_page().value() + place;
}

}  // namespace

Result<MemoryMarks> read_memory_marks(const NamedFile& file) {
  MemoryMarks marks;
  MAYFLY_TRY(read_at(file.fd, offset_of(kSnapshotMarkOffset), {.iov_base = &marks, .iov_len = sizeof(marks)},
                     file.name));
  return marks;
}

Result<void> note_diff_pages(const NamedFile& file) {
  MAYFLY_TRY_ASSIGN(DiffPages pages, find_diff_pages(file));
  return write_at(file.fd, offset_of(kDiffPagesOffset), {.iov_base = &pages, .iov_len = sizeof(pages)},
                  file.name);
}

Result<void> write_base_mark(const NamedFile& file, const RandomId& base) {
  struct {
    RandomId base;
    DiffPages pages{};
  } what{.base = base};
  return write_at(file.fd, offset_of(kSnapshotBaseOffset), {.iov_base = &what, .iov_len = sizeof(what)},
                  file.name);
}

}  // namespace mayfly
