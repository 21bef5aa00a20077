// One microVM from its configuration to its end: what the process does between its command line and its exit
// code.
#pragma once

#include <optional>
#include <string>

#include "api/config_file.h"
#include "base/result.h"
#include "mayfly/options.h"
#include "vmm/boot_trace.h"
#include "vmm/config.h"

namespace mayfly {

// Sets up the log as the flags and the configuration file's logger section ask; flags win. `default_level`
// holds where neither names one. Errors: kInvalidArgument for a level that is none, else what opening the
// file reports.
Result<void> set_up_log(const Options& options, const std::optional<api::LoggerSection>& section,
                        LogLevel default_level);

// Runs the microVM until it ends by itself, by SIGTERM or SIGINT, or by the console's escape. `trace` may be
// null. How it ended; an error where it could not be made or its end failed.
Result<Outcome> run_microvm(const Options& options, const VmConfig& config,
                            const std::optional<api::MetricsSection>& metrics_section, BootTrace* trace);

}  // namespace mayfly
