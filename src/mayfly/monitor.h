// One microVM from its configuration to its end: what the process does between its command line and its exit
// code.
#pragma once

#include "mayfly/failure.h"
#include "vmm/boot_trace.h"
#include "vmm/config.h"
#include "vmm/outcome.h"

namespace mayfly {

// Runs the microVM until it ends by itself, by SIGTERM or SIGINT, or by the console's escape. Log and metrics
// are open, the crash handlers installed, descriptors 0 to 2 open. `trace` may be null. How it ended; a
// failure where it could not be made (kBadConfiguration or kError) or where its end failed.
OrFailure<Outcome> run_microvm(const VmConfig& config, BootTrace* trace);

}  // namespace mayfly
