// The files that the monitor writes to, opened before anything runs: one that cannot be written is the fault
// of the one who named it, and nothing has happened yet.
#pragma once

#include <memory>

#include "mayfly/failure.h"
#include "mayfly/options.h"
#include "mayfly/plan.h"
#include "vmm/boot_trace.h"

namespace mayfly {

// Sets up the log and opens the metrics' file, as flags and configuration file ask. Call once in a process.
// kBadArguments for what a flag names, kBadConfiguration for what the configuration file names.
OrFailure<void> open_log_and_metrics(const Options& options, const Plan& plan);

// Null where none was asked for. kBadArguments where it cannot be written.
OrFailure<std::unique_ptr<BootTrace>> open_boot_trace(const Options& options,
                                                      BootTrace::Clock::time_point start);

}  // namespace mayfly
