#include "devices/vmgenid/vmgenid.h"

#include <sys/random.h>

#include <cerrno>

namespace mayfly {
namespace {

Result<GuestAddress> within(GuestAddress page, std::uint64_t offset) {
  const auto address = page.checked_add(offset);
  if (!page.is_aligned(kGenerationPageSize) || !address) {
    return fail(ErrorCode::kOutOfRange, "VM generation id: there is no page at that address");
  }
  return *address;
}

Error in_words(const MemoryFault& fault) {
  return fault.to_error().within("VM generation id");
}

Result<void> write_at(GuestMemory& memory, GuestAddress page, std::uint64_t offset, const RandomId& id) {
  MAYFLY_TRY_ASSIGN(const GuestAddress address, within(page, offset));
  return memory.write(address, id).map_error(in_words);
}

Result<RandomId> read_at(const GuestMemory& memory, GuestAddress page, std::uint64_t offset) {
  MAYFLY_TRY_ASSIGN(const GuestAddress address, within(page, offset));
  return memory.read_object<RandomId>(address).map_error(in_words);
}

}  // namespace

Result<RandomId> make_random_id() {
  RandomId id;
  // Never in parts: it is less than 256 bytes (getrandom(2)).
  if (::getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) {
    return fail_errno(errno, "make a random id");
  }
  return id;
}

Result<void> write_generation(GuestMemory& memory, GuestAddress page, const RandomId& generation) {
  return write_at(memory, page, kGenerationOffset, generation);
}

Result<RandomId> read_generation(const GuestMemory& memory, GuestAddress page) {
  return read_at(memory, page, kGenerationOffset);
}

Result<void> write_snapshot_mark(GuestMemory& memory, GuestAddress page, const RandomId& mark) {
  return write_at(memory, page, kSnapshotMarkOffset, mark);
}

Result<RandomId> read_snapshot_mark(const GuestMemory& memory, GuestAddress page) {
  return read_at(memory, page, kSnapshotMarkOffset);
}

Result<void> write_snapshot_base(GuestMemory& memory, GuestAddress page, const RandomId& mark) {
  MAYFLY_TRY(write_at(memory, page, kSnapshotBaseOffset, mark));
  return write_at(memory, page, kDiffPagesOffset, RandomId{});
}

Result<RandomId> read_snapshot_base(const GuestMemory& memory, GuestAddress page) {
  return read_at(memory, page, kSnapshotBaseOffset);
}

Result<std::uint64_t> read_diff_page_count(const GuestMemory& memory, GuestAddress page) {
  MAYFLY_TRY_ASSIGN(const GuestAddress address, within(page, kDiffPagesOffset));
  return memory.read_object<std::uint64_t>(address).map_error(in_words);
}

}  // namespace mayfly
