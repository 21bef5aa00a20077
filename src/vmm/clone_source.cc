#include "vmm/clone_source.h"

#include <sys/stat.h>

#include <bit>
#include <cerrno>
#include <utility>

#include "base/file.h"
#include "devices/vmgenid/vmgenid.h"
#include "memory/memory_file.h"
#include "snapshot/container.h"
#include "vmm/saved_config.h"

namespace mayfly {
namespace {

constexpr const char* kMemoryRole = "snapshot memory file";

}  // namespace

Result<std::string> read_snapshot_state(const std::string& path) {
  constexpr const char* kRole = "snapshot";
  MAYFLY_TRY_ASSIGN(const UniqueFd file, open_file(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, kRole));
  const std::string name = std::string(kRole) + " " + path;
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) {
    return fail_errno(errno, "look at " + name);
  }
  if (!S_ISREG(status.st_mode)) {
    return fail(ErrorCode::kInvalidArgument, name + ": is not a regular file");
  }
  if (status.st_size > static_cast<off_t>(kMaxSnapshotState)) {
    return fail(ErrorCode::kOutOfRange,
                name + ": larger than any state file; the memory file is named after it");
  }
  std::string bytes(static_cast<std::size_t>(status.st_size), '\0');
  MAYFLY_TRY_ASSIGN(const std::size_t count,
                    read_at(file, 0, {.iov_base = bytes.data(), .iov_len = bytes.size()}, name));
  bytes.resize(count);
  return bytes;
}

Result<GuestMemory> load_saved_memory(const MicroVmState& state, HugePages pages, UniqueFd file,
                                      const std::string& name, const std::string& state_path) {
  MAYFLY_TRY_ASSIGN(const std::vector<GuestRange> ranges, memory_ranges_of(state));
  MAYFLY_TRY_ASSIGN(GuestMemory memory, load_memory_file(ranges, backing_of(pages), std::move(file), name));
  MAYFLY_TRY_ASSIGN(const RandomId base, read_snapshot_base(memory, vm_gen_id_page()));
  // One that is onto a snapshot without a mark is known by the pages that it notes. One that has all is
  // whole.
  MAYFLY_TRY_ASSIGN(const std::uint64_t noted, read_diff_page_count(memory, vm_gen_id_page()));
  const bool lacks_pages = noted != 0 && noted < memory.size() / kGuestPage;
  if (base != RandomId{} || lacks_pages) {
    return fail(ErrorCode::kInvalidImage,
                name + ": has only what changed since another snapshot (Diff): mayfly merge makes it whole");
  }
  if (state.mark) {
    MAYFLY_TRY_ASSIGN(const RandomId mark, read_snapshot_mark(memory, vm_gen_id_page()));
    if (std::bit_cast<SnapshotMark>(mark) != *state.mark) {
      return fail(ErrorCode::kInvalidImage,
                  name + ": is of another snapshot than the state file " + state_path);
    }
  }
  return memory;
}

tl::expected<CloneSource, BuildError> CloneSource::open(const std::string& state_path,
                                                        const std::string& memory_path) {
  const auto within = [&state_path](const Error& error) { return error.within("snapshot " + state_path); };
  MAYFLY_TRY_ASSIGN(const std::string bytes,
                    read_snapshot_state(state_path).map_error(BuildError::of_loading));
  MAYFLY_TRY_ASSIGN(
      MicroVmState state,
      decode(std::as_bytes(std::span(bytes))).map_error(within).map_error(BuildError::of_loading));
  MAYFLY_TRY_ASSIGN(VmConfig config, config_of(state).map_error(within).map_error(BuildError::of_loading));
  config.machine.huge_pages = HugePages::kNone;  // which no guest can tell, and clones could not share
  MAYFLY_TRY_ASSIGN(
      UniqueFd memory,
      open_file(memory_path, O_RDONLY | O_NONBLOCK, kMemoryRole).map_error(BuildError::of_loading));
  std::string name = std::string(kMemoryRole) + " " + memory_path;
  // Once for all clones: whether it is the snapshot's.
  MAYFLY_TRY_ASSIGN(UniqueFd copy, duplicate(memory, name));
  MAYFLY_TRY(load_saved_memory(state, config.machine.huge_pages, std::move(copy), name, state_path)
                 .map_error(BuildError::of_loading));
  MAYFLY_TRY_ASSIGN(OpenKvm opened, open_kvm(config, nullptr, std::nullopt));
  MAYFLY_TRY_ASSIGN(const auto supported, supported_processor(opened.kvm));
  MAYFLY_TRY_ASSIGN(Processor processor,
                    restore_processor(opened.kvm, supported, std::exchange(state.vcpus, {}))
                        .map_error(within)
                        .map_error(BuildError::of_loading));
  return CloneSource({state_path, memory_path}, std::move(config), std::move(state), std::move(memory),
                     std::move(name), std::move(opened), std::move(processor));
}

Result<ClonePlace> CloneSource::make_place() && {
  MAYFLY_TRY_ASSIGN(const std::vector<GuestRange> ranges, memory_ranges_of(state_));
  MAYFLY_TRY_ASSIGN(GuestMemory memory, GuestMemory::map_file(ranges, std::move(memory_), memory_name_));
  MAYFLY_TRY_ASSIGN(MachineFrame frame,
                    make_frame(std::move(memory), state_.drives.size() + state_.networks.size(), kvm_.kvm,
                               std::move(kvm_.vm), config_.machine.vcpu_count));
  frame.processor = std::move(processor_);
  return ClonePlace{std::move(config_), std::move(state_), std::move(frame), std::move(files_)};
}

}  // namespace mayfly
