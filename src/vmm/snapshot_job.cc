#include "vmm/snapshot_job.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/same_file.h"
#include "vmm/diff_mark.h"

namespace mayfly {

Result<SnapshotJob> SnapshotJob::create(const SnapshotRequest& request) {
  if (request.state_path == request.memory_path || same_file(request.state_path, request.memory_path)) {
    return fail(ErrorCode::kInvalidArgument,
                request.memory_path + ": state and memory of a snapshot are two files");
  }
  MAYFLY_TRY_ASSIGN(AtomicFile state, AtomicFile::create(request.state_path, "snapshot state file"));
  MAYFLY_TRY_ASSIGN(AtomicFile memory, AtomicFile::create(request.memory_path, "snapshot memory file"));
  return SnapshotJob(std::move(state), std::move(memory));
}

Result<WrittenMemory> SnapshotJob::write(const CapturedVm& captured) {
  // SAFETY: write_at() only reads it; iovec has no const.
  const iovec state{.iov_base = const_cast<std::byte*>(captured.state.data()),
                    .iov_len = captured.state.size()};
  MAYFLY_TRY(write_at(state_.descriptor(), 0, state, state_.name()));
  return write_memory(captured);
}

Result<void> SnapshotJob::write_ahead(const LiveMemory& live) {
  MAYFLY_TRY(write_full(*live.memory, memory_file(), live.options));
  MAYFLY_TRY_ASSIGN(ahead_, precopy(*live.memory, *live.log, memory_file(), PrecopyRule{}, live.options));
  return {};
}

Result<WrittenMemory> SnapshotJob::write_memory(const CapturedVm& captured) {
  const GuestMemory& memory = *captured.memory;
  if (const auto* rest = std::get_if<CapturedVm::Rest>(&captured.content)) {
    return finish_precopy(memory, *rest->log, ahead_, memory_file(), captured.options);
  }
  if (const auto* dirty = std::get_if<CapturedVm::Pages>(&captured.content)) {
    return write_pages(captured, *dirty->pages);
  }
  if (std::holds_alternative<CapturedVm::AllAsDiff>(captured.content)) {
    PageSet all = no_pages(memory);
    for (std::vector<std::uint64_t>& region : all) {
      std::ranges::fill(region, ~std::uint64_t{0});
    }
    return write_pages(captured, all);
  }
  if (std::holds_alternative<CapturedVm::OwnPages>(captured.content)) {
    MAYFLY_TRY_ASSIGN(const PageSet own, find_written_pages(memory, *captured.options.pages));
    return write_pages(captured, own);
  }
  return write_full(memory, memory_file(), captured.options);
}

Result<WrittenMemory> SnapshotJob::write_pages(const CapturedVm& captured, const PageSet& pages) {
  MAYFLY_TRY_ASSIGN(const WrittenMemory written,
                    write_diff(*captured.memory, pages, memory_file(), captured.options));
  MAYFLY_TRY(note_diff_pages(memory_file()));
  return written;
}

Result<void> SnapshotJob::commit(const std::function<bool()>& proceed) {
  MAYFLY_TRY(state_.sync());
  MAYFLY_TRY(memory_.sync_by_pieces(proceed));
  return AtomicFile::publish_pair(memory_, state_);
}

}  // namespace mayfly
