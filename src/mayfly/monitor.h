// One microVM from its configuration to its end: what the process does between the command line and its exit code.
#pragma once

#include <chrono>

#include "api/config_file.h"
#include "mayfly/options.h"
#include "vmm/boot_trace.h"
#include "vmm/config.h"

namespace mayfly {

// The log as flags and a configuration file's logger section ask for it; flags win. Error kInvalidArgument for a level
// that is none, else what opening the file reports.
Result<void> configure_log(const Options& options, const std::optional<api::LoggerSection>& section);

// The kernel that `run` boots where none is named: the first that exists of $MAYFLY_KERNEL, $XDG_DATA_HOME/mayfly/kernel
// and /usr/share/mayfly/kernel. Error kNotFound naming them all.
Result<std::string> default_kernel();

// Runs the microVM until it ends, is stopped by a signal or by the console's escape. The process's exit code; everything
// that went wrong has been logged.
int run_microvm(const Options& options, const VmConfig& config, const std::optional<api::MetricsSection>& metrics,
                BootTrace* trace);

}  // namespace mayfly
