#include "mayfly/outputs.h"

#include "base/log.h"
#include "base/metrics.h"

namespace mayfly {

OrFailure<void> open_log_and_metrics(const Options& options, const Plan& plan) {
  const auto fault = [](bool is_flag) {
    return with_code(is_flag ? ExitCode::kBadArguments : ExitCode::kBadConfiguration);
  };
  MAYFLY_TRY_ASSIGN(const LogConfig log, log_config_of(options, plan));
  MAYFLY_TRY(set_log_instance_id(options.id).map_error(fault(true)));
  const bool is_flag = log.path ? options.log.path.has_value() : options.log.module.has_value();
  MAYFLY_TRY(configure_log(log).map_error(fault(is_flag)));
  if (const auto output = metrics_output_of(options, plan)) {
    MAYFLY_TRY(metrics().open(*output).map_error(fault(options.metrics_path.has_value())));
  }
  return {};
}

OrFailure<std::unique_ptr<BootTrace>> open_boot_trace(const Options& options,
                                                      BootTrace::Clock::time_point start) {
  if (!options.boot_trace) {
    return nullptr;
  }
  return BootTrace::create(*options.boot_trace, start).map_error(with_code(ExitCode::kBadArguments));
}

}  // namespace mayfly
