// mayfly: one process, one microVM.
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "api/config_file.h"
#include "base/crash.h"
#include "base/exit_code.h"
#include "base/log.h"
#include "mayfly/doctor.h"
#include "mayfly/monitor.h"
#include "mayfly/options.h"
#include "vmm/boot_trace.h"

namespace mayfly {
namespace {

// What is wrong with the command line or the configuration, to the person at the shell.
int refuse(ExitCode code, const std::string& text) {
  std::fprintf(stderr, "mayfly: %s\n", text.c_str());
  return static_cast<int>(code);
}

// The exit code of an error from the making of a machine: the configuration's fault, or the host's.
ExitCode exit_code_of(const Error& error) {
  switch (error.code()) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kInvalidImage:
    case ErrorCode::kOutOfRange:
    case ErrorCode::kNotFound:
      return ExitCode::kBadConfiguration;
    default:
      return ExitCode::kError;
  }
}

// The kernel that `run` boots where none is named.
Result<std::string> default_kernel() {
  if (const char* named = std::getenv("MAYFLY_KERNEL"); named != nullptr && *named != '\0') {
    return std::string(named);
  }
  const char* data = std::getenv("XDG_DATA_HOME");
  const char* home = std::getenv("HOME");
  const std::string own = data != nullptr && *data != '\0'
                              ? std::string(data)
                              : std::string(home == nullptr ? "" : home) + "/.local/share";
  for (const std::string& path : {own + "/mayfly/kernel", std::string("/usr/share/mayfly/kernel")}) {
    if (::access(path.c_str(), F_OK) == 0) {
      return path;
    }
  }
  return fail(ErrorCode::kNotFound,
              "no kernel: name one with --kernel FILE or $MAYFLY_KERNEL, or put one at " + own +
                  "/mayfly/kernel or /usr/share/mayfly/kernel");
}

// What is to run, from either way to say it.
struct Plan {
  VmConfig vm;
  std::optional<api::LoggerSection> logger;
  std::optional<api::MetricsSection> metrics;
  LogLevel default_level = LogLevel::kInfo;
};

Result<Plan> plan_of(const Options& options) {
  Plan plan;
  plan.vm.instance_id = options.id;
  if (options.subcommand == Subcommand::kMonitor) {
    MAYFLY_TRY_ASSIGN(api::ConfigFile file, api::read_config_file(*options.config_file));
    plan.vm.machine = file.machine;
    plan.vm.boot_source = std::move(file.boot_source);
    plan.logger = std::move(file.logger);
    plan.metrics = std::move(file.metrics);
    return plan;
  }
  plan.vm.machine.vcpu_count = options.run.cpus;
  plan.vm.machine.mem_size_mib = options.run.memory_mib;
  plan.vm.machine.huge_pages = options.run.huge_pages ? HugePages::k2M : HugePages::kNone;
  plan.vm.boot_source.kernel_image_path = *options.run.kernel;
  plan.vm.boot_source.initrd_path = options.run.initrd;
  plan.vm.boot_source.boot_args = options.run.cmdline;
  plan.vm.boot_source.protocol = options.run.protocol;
  plan.default_level = LogLevel::kWarn;  // standard error is a person's terminal
  return plan;
}

int run(const Options& options, BootTrace::Clock::time_point start) {
  auto plan = plan_of(options);
  if (!plan) {
    return refuse(ExitCode::kBadConfiguration, plan.error().message());
  }
  if (auto log = set_up_log(options, plan->logger, plan->default_level); !log) {
    const bool is_flag = options.log.level.has_value() || options.log.path.has_value();
    return refuse(is_flag ? ExitCode::kBadArguments : ExitCode::kBadConfiguration, log.error().message());
  }
  std::optional<BootTrace> trace;
  if (options.boot_trace) {
    trace.emplace(*options.boot_trace, start);
  }

  auto outcome = run_microvm(options, plan->vm, plan->metrics, trace ? &*trace : nullptr);
  if (!outcome) {
    LOG_ERROR("%s", outcome.error().message().c_str());
    return static_cast<int>(exit_code_of(outcome.error()));
  }
  const int code = mayfly::exit_code_of(outcome->kind);
  if (code == 0) {
    LOG_INFO("%s: %s", name_of(outcome->kind), outcome->detail.c_str());
  } else {
    LOG_ERROR("%s: %s", name_of(outcome->kind), outcome->detail.c_str());
  }
  if (trace) {
    if (auto written = trace->write(); !written) {
      LOG_ERROR("%s", written.error().message().c_str());
      return static_cast<int>(ExitCode::kError);
    }
  }
  return code;
}

int main_of(int argument_count, char** arguments) {
  const auto start = BootTrace::Clock::now();
  auto options = parse_options(argument_count - 1, arguments + 1);
  if (!options) {
    if (options.error().exit_code == 0) {
      std::fputs(options.error().text.c_str(), stdout);
      return 0;
    }
    return refuse(static_cast<ExitCode>(options.error().exit_code), options.error().text);
  }
  if (options->subcommand == Subcommand::kDoctor) {
    const auto findings = examine(this_host());
    std::fputs(report(findings).c_str(), stdout);
    return can_run(findings) ? 0 : 1;
  }
  if (options->subcommand == Subcommand::kRun && !options->run.kernel) {
    auto kernel = default_kernel();
    if (!kernel) {
      return refuse(ExitCode::kBadArguments, kernel.error().message());
    }
    options->run.kernel = std::move(*kernel);
  }
  return run(*options, start);
}

}  // namespace
}  // namespace mayfly

int main(int argument_count, char** arguments) {
  return mayfly::main_of(argument_count, arguments);
}
