// Everything that a guest finds in its memory when it starts: kernel, initrd, command line, firmware tables.
#pragma once

#include <optional>

#include "base/result.h"
#include "base/unique_fd.h"
#include "boot/x86_64/cpu_state.h"
#include "memory/guest_memory.h"
#include "vmm/boot_trace.h"
#include "vmm/config.h"

namespace mayfly {

// The files that a boot source names, open for reading. Opened before anything else is made: a wrong path is
// the commonest error and costs nothing to find.
struct GuestFiles {
  UniqueFd kernel;
  std::optional<UniqueFd> initrd;

  // Errors name the file and what it was to be.
  static Result<GuestFiles> open(const BootSourceConfig& config);
};

namespace x86_64 {

// Loads the guest into fresh memory. Gives the state in which its first vCPU starts. `trace` may be null.
// Errors: kInvalidImage and kInvalidArgument, naming the file or the command line.
Result<CpuBootState> load_guest(GuestMemory& memory, const VmConfig& config, const GuestFiles& files,
                                BootTrace* trace);

}  // namespace x86_64
}  // namespace mayfly
