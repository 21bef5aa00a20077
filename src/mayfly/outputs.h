// The files that the monitor writes to, opened before anything runs: one that cannot be written is the fault
// of the one who named it, and nothing has happened yet.
#pragma once

#include <memory>

#include "mayfly/failure.h"
#include "mayfly/options.h"
#include "mayfly/plan.h"
#include "vmm/boot_trace.h"

namespace mayfly {

// Refuses an output that is one of the inputs: the kernel, the initrd, the configuration file ... By flag
// 153, by section of the configuration file 152. Before any output is opened.
OrFailure<void> keep_inputs_from_outputs(const Options& options, const Plan& plan);

// Sets up the log and opens the metrics' file, as flags and configuration file ask. Call once in a process.
// kBadArguments for what a flag names, kBadConfiguration for what the configuration file names.
OrFailure<void> open_log_and_metrics(const Options& options, const Plan& plan);

// Sets the metrics of the process's start from what its caller told: the time until now. What the caller did
// not tell stays 0.
void record_startup_times(const ProcessStart& start);

// Null where none was asked for. kBadArguments where it cannot be written.
OrFailure<std::unique_ptr<BootTrace>> open_boot_trace(const Options& options,
                                                      BootTrace::Clock::time_point start);

}  // namespace mayfly
