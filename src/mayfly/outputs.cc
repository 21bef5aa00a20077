#include "mayfly/outputs.h"

#include <utility>

#include "base/log.h"
#include "base/metrics.h"

namespace mayfly {

namespace {

// Blames the flag where it is what was followed, else the section of the configuration file.
auto blame(bool is_flag, const char* flag, const char* section) {
  return [=](const Error& error) {
    return is_flag ? blame_flag(flag)(error)
                   : Failure(ExitCode::kBadConfiguration, error.within(section).message());
  };
}

}  // namespace

OrFailure<void> open_log_and_metrics(const Options& options, const Plan& plan) {
  MAYFLY_TRY_ASSIGN(LogConfig log, log_config_of(options, plan));
  MAYFLY_TRY(set_log_instance_id(options.id).map_error(blame_flag("--id")));
  // The file by itself: what is then left to fail is the module.
  LogConfig file;
  file.path = std::exchange(log.path, std::nullopt);
  MAYFLY_TRY(configure_log(log).map_error(blame(options.log.module.has_value(), "--module", "logger")));
  MAYFLY_TRY(configure_log(file).map_error(blame(options.log.path.has_value(), "--log-path", "logger")));
  if (const auto output = metrics_output_of(options, plan)) {
    MAYFLY_TRY(metrics().open(*output).map_error(
        blame(options.metrics_path.has_value(), "--metrics-path", "metrics")));
  }
  return {};
}

OrFailure<std::unique_ptr<BootTrace>> open_boot_trace(const Options& options,
                                                      BootTrace::Clock::time_point start) {
  if (!options.boot_trace) {
    return nullptr;
  }
  return BootTrace::create(*options.boot_trace, start).map_error(blame_flag("--boot-trace"));
}

}  // namespace mayfly
