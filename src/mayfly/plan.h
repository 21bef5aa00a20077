// What is to run: the flags and the configuration file put together.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "api/config_file.h"
#include "base/log.h"
#include "base/metrics.h"
#include "mayfly/failure.h"
#include "mayfly/options.h"
#include "vmm/config.h"

namespace mayfly {

// What a plan depends on besides the flags, so that a test can stand in for it.
struct Surroundings {
  std::function<std::optional<std::string>(const char*)>
      variable;                                    // of the environment; empty counts as none
  std::function<bool(const std::string&)> exists;  // a file of that path
};
Surroundings this_process();

// The kernel that `run` boots where --kernel names none: $MAYFLY_KERNEL, else the first that is there of
// $XDG_DATA_HOME/mayfly/kernel (by default ~/.local/share/mayfly/kernel) and /usr/share/mayfly/kernel. Error
// kNotFound that names all of them.
Result<std::string> default_kernel(const Surroundings& surroundings);

// Whether a guest is to run without anybody's call: by flags, a configuration file, or a snapshot. `options`
// is a monitor's.
bool begins_at_once(const Options& options);

struct Plan {
  std::optional<VmConfig> vm;  // absent: the control API is to say, or, of `restore`, the snapshot
  std::optional<std::string> cpu_config_path;  // the file that the CPU template was read from
  std::optional<std::string> metadata;         // JSON that the metadata service tells at first
  std::optional<api::LoggerSection> logger;
  std::optional<api::MetricsSection> metrics;
};

// Reads the configuration file, if one is named. kBadConfiguration for what is wrong with it, kBadArguments
// where `run` has no kernel. `options` is not for a doctor.
OrFailure<Plan> make_plan(const Options& options, const Surroundings& surroundings);

// What errors call a section of the configuration file: "configuration file vm.json: logger". Without a
// section the file alone, without a file the section.
std::string section_name(const Options& options, const std::string& section);

// The log as the flags and the logger section ask for it: flags win one by one. Where neither names a level
// it is Info, and Warn for `run`, whose standard error is a person's terminal. A level that is none is the
// fault of the one that names it.
OrFailure<LogConfig> log_config_of(const Options& options, const Plan& plan);

// Where metrics go; nothing where nobody wants any. --metrics-path wins over the section's path; the rest is
// the section's.
std::optional<MetricsOutput> metrics_output_of(const Options& options, const Plan& plan);

}  // namespace mayfly
