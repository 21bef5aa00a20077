#include "mayfly/plan.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>
#include <vector>

#include "base/file.h"
#include "mayfly/device_options.h"

namespace mayfly {
namespace {

constexpr std::size_t kMaxMetadataFile = std::size_t{64} << 20;  // bytes

// The flag where it is given, else the section's field.
template <typename T>
std::optional<T> either(const std::optional<T>& flag, const std::optional<T>& field) {
  return flag ? flag : field;
}

std::optional<std::string> variable_of_environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

bool exists(const std::string& path) {
  return ::access(path.c_str(), F_OK) == 0;
}

}  // namespace

Surroundings this_process() {
  return {variable_of_environment, exists};
}

Result<std::string> default_kernel(const Surroundings& surroundings) {
  const auto variable = [&](const char* name) {
    auto value = surroundings.variable(name);
    return value && value->empty() ? std::nullopt : value;
  };
  if (auto named = variable("MAYFLY_KERNEL")) {
    return std::move(*named);
  }
  std::vector<std::string> places;
  if (const auto data = variable("XDG_DATA_HOME")) {
    places.push_back(*data + "/mayfly/kernel");
  } else if (const auto home = variable("HOME")) {
    places.push_back(*home + "/.local/share/mayfly/kernel");
  }
  places.emplace_back("/usr/share/mayfly/kernel");
  std::string all;
  for (std::string& place : places) {
    if (surroundings.exists(place)) {
      return std::move(place);
    }
    all.append(all.empty() ? "" : " or ").append(place);
  }
  return fail(ErrorCode::kNotFound,
              "no kernel: name one with --kernel FILE or $MAYFLY_KERNEL, or put one at " + all);
}

bool begins_at_once(const Options& options) {
  return options.subcommand != Subcommand::kMonitor || options.config_file;
}

OrFailure<Plan> make_plan(const Options& options, const Surroundings& surroundings) {
  Plan plan;
  if (options.metadata) {
    MAYFLY_TRY_ASSIGN(
        plan.metadata,
        read_file(*options.metadata, "metadata", kMaxMetadataFile).map_error(blame_flag("--metadata")));
  }
  if (options.subcommand == Subcommand::kMonitor) {
    if (!options.config_file) {
      return plan;
    }
    MAYFLY_TRY_ASSIGN(
        api::ConfigFile file,
        api::read_config_file(*options.config_file).map_error(with_code(ExitCode::kBadConfiguration)));
    plan.vm = {.machine = file.machine,
               .boot_source = std::move(file.boot_source),
               .drives = std::move(file.drives),
               .networks = std::move(file.networks),
               .mmds = std::move(file.mmds),
               .cpu_template = std::move(file.cpu_template)};
    plan.cpu_config_path = std::move(file.cpu_config_path);
    plan.logger = std::move(file.logger);
    plan.metrics = std::move(file.metrics);
    return plan;
  }
  if (options.subcommand == Subcommand::kRestore) {
    for (const DriveOverride& change : options.load.drives) {
      MAYFLY_TRY(check_drive_words(change.path.value_or(""), DriveWords::kOverlayOnly, surroundings.exists)
                     .map_error(blame_flag("--disk")));
    }
    return plan;
  }
  const RunOptions& run = options.run;
  VmConfig& vm = plan.vm.emplace();
  MachineConfig& machine = vm.machine;
  machine.vcpu_count = run.cpus;
  machine.mem_size_mib = run.memory_mib;
  machine.track_dirty_pages = run.track_dirty_pages;
  machine.huge_pages = run.huge_pages ? HugePages::k2M : HugePages::kNone;
  // Only the size can still be wrong: the parser of the flags knows the rest.
  MAYFLY_TRY(machine.validate().map_error(blame_flag("--memory")));
  BootSourceConfig& boot = vm.boot_source;
  if (run.kernel) {
    boot.kernel_image_path = *run.kernel;
  } else {
    MAYFLY_TRY_ASSIGN(boot.kernel_image_path,
                      default_kernel(surroundings).map_error(with_code(ExitCode::kBadArguments)));
  }
  boot.initrd_path = run.initrd;
  boot.boot_args = run.cmdline;
  boot.protocol = run.protocol;
  for (const BlockDeviceConfig& drive : run.drives) {
    MAYFLY_TRY(check_drive_words(drive.path, DriveWords::kAll, surroundings.exists)
                   .map_error(blame_flag(drive.is_root ? "--rootfs" : "--disk")));
  }
  vm.drives = run.drives;
  vm.networks = run.networks;
  return plan;
}

std::string section_name(const Options& options, const std::string& section) {
  if (!options.config_file) {
    return section;
  }
  return "configuration file " + *options.config_file + (section.empty() ? "" : ": " + section);
}

OrFailure<LogConfig> log_config_of(const Options& options, const Plan& plan) {
  const LogOptions& flags = options.log;
  const api::LoggerSection section = plan.logger.value_or(api::LoggerSection{});
  LogConfig config;
  config.path = either(flags.path, section.log_path);
  config.module = either(flags.module, section.module);
  config.show_level = flags.show_level || section.show_level.value_or(false);
  config.show_origin = flags.show_origin || section.show_log_origin.value_or(false);
  config.level = options.subcommand == Subcommand::kMonitor ? LogLevel::kInfo : LogLevel::kWarn;
  if (const auto level = either(flags.level, section.level)) {
    MAYFLY_TRY_ASSIGN(config.level, parse_log_level(*level).map_error([&](const Error& error) {
      return flags.level ? blame_flag("--level")(error)
                         : Failure(ExitCode::kBadConfiguration,
                                   error.within(section_name(options, "logger")).message());
    }));
  }
  return config;
}

std::optional<MetricsOutput> metrics_output_of(const Options& options, const Plan& plan) {
  if (!options.metrics_path && !plan.metrics) {
    return std::nullopt;
  }
  MetricsOutput output;
  if (plan.metrics) {
    output.path = plan.metrics->metrics_path;
    output.properties = plan.metrics->properties;
    output.instance_id = plan.metrics->emit_id ? options.id : "";
  }
  output.path = options.metrics_path.value_or(output.path);
  return output;
}

}  // namespace mayfly
