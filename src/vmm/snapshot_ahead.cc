#include "vmm/snapshot_ahead.h"

#include <fcntl.h>
#include <unistd.h>

#include <span>
#include <string>
#include <utility>

#include "base/file.h"
#include "vmm/clone_source.h"
#include "vmm/saved_config.h"

namespace mayfly {
namespace {

Result<std::optional<SnapshotAhead::Found>> read(const LoadRequest& request, HostKvm& host) {
  if (request.memory_from_handler) {
    return std::nullopt;
  }
  MAYFLY_TRY_ASSIGN(const std::string bytes, read_snapshot_state(request.state_path));
  MAYFLY_TRY_ASSIGN(MicroVmState state, decode(std::as_bytes(std::span(bytes))));
  MAYFLY_TRY_ASSIGN(VmConfig config, config_of(state));
  const HugePages pages = request.huge_pages.value_or(config.machine.huge_pages);
  if (pages != HugePages::kNone || (config.cpu_template && !config.cpu_template->capabilities.empty())) {
    return std::nullopt;
  }
  MAYFLY_TRY_ASSIGN(UniqueFd file, open_file(request.memory_path, O_RDONLY | O_NONBLOCK, kLoadedMemoryRole));
  const std::string name = std::string(kLoadedMemoryRole) + " " + request.memory_path;
  MAYFLY_TRY_ASSIGN(GuestMemory memory,
                    load_saved_memory(state, pages, std::move(file), name, request.state_path));
  FrameAhead frame(std::move(memory), state.drives.size() + state.networks.size(), config.machine.vcpu_count,
                   &host);
  return SnapshotAhead::Found{std::move(state), std::move(config), std::move(frame)};
}

}  // namespace

SnapshotAhead::SnapshotAhead(const LoadRequest& request, HostKvm& host) {
  const auto begin = BootTrace::Clock::now();
  if (auto found = read(request, host)) {
    found_ = std::move(*found);
  }
  reading_ = {"read the snapshot", begin, BootTrace::Clock::now(), ::gettid()};
}

std::optional<SnapshotAhead::Found> SnapshotAhead::take(BootTrace* trace) {
  if (trace != nullptr) {
    trace->phase(reading_);
  }
  return std::exchange(found_, std::nullopt);
}

}  // namespace mayfly
