// One microVM from its configuration to its end: what the process does between its command line and its exit
// code.
#pragma once

#include <optional>
#include <string>

#include "mayfly/failure.h"
#include "mayfly/options.h"
#include "mayfly/plan.h"
#include "vmm/boot_trace.h"
#include "vmm/outcome.h"

namespace mayfly {

// Runs the microVM until it ends by itself, by SIGTERM or SIGINT, or by the console's escape. It starts at
// once where the plan has a configuration, else when the control API is told to. Log and metrics are open,
// the crash handlers installed, descriptors 0 to 2 open. `trace` may be null. How it ended; a failure where
// it could not be made (kBadConfiguration or kError) or where its end failed.
OrFailure<Outcome> run_microvm(const Options& options, const Plan& plan, BootTrace* trace);

}  // namespace mayfly
