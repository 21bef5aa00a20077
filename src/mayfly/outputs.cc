#include "mayfly/outputs.h"

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/metrics.h"
#include "base/same_file.h"

namespace mayfly {

namespace {

// Blames the flag where it is what was followed, else the section of the configuration file.
auto blame(bool is_flag, const char* flag, const std::string& section) {
  return [=](const Error& error) {
    return is_flag ? blame_flag(flag)(error)
                   : Failure(ExitCode::kBadConfiguration, error.within(section).message());
  };
}

struct NamedFile {
  std::string name;  // the flag or the section
  std::optional<std::string> path;
  bool is_flag = true;
};

}  // namespace

OrFailure<void> keep_inputs_from_outputs(const Options& options, const Plan& plan) {
  const VmConfig vm = plan.vm.value_or(VmConfig{});
  std::vector inputs = {
      NamedFile{"the kernel image", vm.boot_source.kernel_image_path},
      NamedFile{"the initrd", vm.boot_source.initrd_path},
      NamedFile{"the configuration file", options.config_file},
      NamedFile{"the CPU template", plan.cpu_config_path},
      NamedFile{"the snapshot's working set", options.load.working_set_path},
  };
  if (options.subcommand == Subcommand::kRestore) {
    inputs.push_back({"the snapshot's state", options.load.state_path});
    inputs.push_back({"the snapshot's memory", options.load.memory_path});
  }
  for (const BlockDeviceConfig& drive : vm.drives) {
    inputs.push_back({"a drive's image", drive.path});
    inputs.push_back({"a drive's overlay", drive.overlay ? drive.overlay->path : std::nullopt});
  }
  // The trace is written at the end, over what others have written to the same file by then.
  for (const auto& other : {options.log.path, options.metrics_path}) {
    if (options.boot_trace && other &&
        (*options.boot_trace == *other || same_file(*options.boot_trace, *other))) {
      return tl::make_unexpected(
          Failure(ExitCode::kBadArguments, "--boot-trace " + *other +
                                               ": is the log or the metrics file, too, "
                                               "which it would overwrite"));
    }
  }
  const std::string logger = section_name(options, "logger");
  const std::string metrics = section_name(options, "metrics");
  const std::array outputs = {
      NamedFile{"--log-path", options.log.path},
      NamedFile{"--metrics-path", options.metrics_path},
      NamedFile{"--boot-trace", options.boot_trace},
      NamedFile{logger, plan.logger ? plan.logger->log_path : std::nullopt, false},
      NamedFile{metrics, plan.metrics ? std::optional(plan.metrics->metrics_path) : std::nullopt, false},
  };
  for (const NamedFile& output : outputs) {
    for (const NamedFile& input : inputs) {
      if (output.path && input.path && same_file(*output.path, *input.path)) {
        return tl::make_unexpected(
            Failure(output.is_flag ? ExitCode::kBadArguments : ExitCode::kBadConfiguration,
                    output.name + " " + *output.path + ": is " + input.name + ", which it would overwrite"));
      }
    }
  }
  return {};
}

OrFailure<void> open_log_and_metrics(const Options& options, const Plan& plan) {
  MAYFLY_TRY_ASSIGN(LogConfig log, log_config_of(options, plan));
  MAYFLY_TRY(set_log_instance_id(options.id).map_error(blame_flag("--id")));
  const std::string logger = section_name(options, "logger");
  // The file by itself: what is then left to fail is the module.
  LogConfig file;
  file.path = std::exchange(log.path, std::nullopt);
  MAYFLY_TRY(configure_log(log).map_error(blame(options.log.module.has_value(), "--module", logger)));
  MAYFLY_TRY(configure_log(file).map_error(blame(options.log.path.has_value(), "--log-path", logger)));
  if (const auto output = metrics_output_of(options, plan)) {
    MAYFLY_TRY(metrics().open(*output).map_error(
        blame(options.metrics_path.has_value(), "--metrics-path", section_name(options, "metrics"))));
  }
  return {};
}

void record_startup_times(const ProcessStart& start) {
  ApiServerMetrics& group = metrics().api_server;
  if (const auto time = startup_time_us(start, monotonic_ns())) {
    group.process_startup_time_us.set(*time);
  }
  if (const auto time = startup_cpu_time_us(start, process_cpu_ns())) {
    group.process_startup_time_cpu_us.set(*time);
  }
}

OrFailure<std::unique_ptr<BootTrace>> open_boot_trace(const Options& options,
                                                      BootTrace::Clock::time_point start) {
  if (!options.boot_trace) {
    return nullptr;
  }
  return BootTrace::create(*options.boot_trace, start).map_error(blame_flag("--boot-trace"));
}

}  // namespace mayfly
