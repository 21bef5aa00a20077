// A snapshot that is read before there is a microVM to go on from it.
#pragma once

#include <optional>

#include "snapshot/micro_vm_state.h"
#include "vmm/boot_trace.h"
#include "vmm/config.h"
#include "vmm/frame_ahead.h"
#include "vmm/host_kvm.h"
#include "vmm/load_request.h"

namespace mayfly {

// The snapshot's memory, in errors.
inline constexpr const char* kLoadedMemoryRole = "snapshot memory file";

// Reads a snapshot's files and has HostKvm make the machine's frame of them, while the process gets ready for
// the microVM. It is ahead only: nothing outside of the process is changed, and who gets nothing here reads
// in its place, and hears what stands against it.
class SnapshotAhead {
 public:
  struct Found {
    MicroVmState state;
    VmConfig config;  // as it was saved, nothing of the request in it
    FrameAhead frame;
  };

  // At once, what `request` names. Nothing is there where that cannot be read, memory is not just a file to
  // map, or a CPU template asks something of KVM.
  SnapshotAhead(const LoadRequest& request, HostKvm& host);

  // Once. `trace`, which may be null, is told how long it took.
  std::optional<Found> take(BootTrace* trace);

 private:
  BootTrace::Phase reading_{};
  std::optional<Found> found_;
};

}  // namespace mayfly
