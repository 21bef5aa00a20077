// mayfly: one process, one microVM.
#include <malloc.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

#include "base/crash.h"
#include "base/exit_code.h"
#include "base/file.h"
#include "base/line_sink.h"
#include "base/log.h"
#include "base/text.h"
#include "base/unique_fd.h"
#include "devices/serial/terminal_guard.h"
#include "mayfly/completion.h"
#include "mayfly/doctor.h"
#include "mayfly/failure.h"
#include "mayfly/inherited.h"
#include "mayfly/merge.h"
#include "mayfly/monitor.h"
#include "mayfly/options.h"
#include "mayfly/outputs.h"
#include "mayfly/plan.h"
#include "mayfly/processes.h"
#include "mayfly/program_text.h"
#include "mayfly/shell.h"
#include "mayfly/template.h"
#include "seccomp/policy/syscall_names.h"
#include "snapshot/container.h"
#include "snapshot/describe.h"
#include "vmm/boot_trace.h"

namespace mayfly {
namespace {

// Longer texts are cut: a configuration file can make one of any length.
constexpr std::size_t kMaxRefusal = 4096;
constexpr int kPatienceMs = 1000;

// Tells the person at the shell what is wrong, then `hint`. What is not printable is escaped: parts of it may
// come from a file.
void tell(const std::string& text, const char* hint = "") {
  std::array<char, kMaxRefusal> storage{};
  TextBuffer escaped(storage);
  escaped.append_escaped(text);
  std::string all = "mayfly: ";
  all.append(escaped.view()).append(escaped.truncated() ? "...\n" : "\n").append(hint);
  // A reader that reads is waited for, one that does not (a terminal that is stopped) is not.
  std::string_view rest = all;
  pollfd ready{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  while (!rest.empty() && ::poll(&ready, 1, kPatienceMs) == 1) {
    const std::size_t written = write_shared(STDERR_FILENO, rest.substr(0, kAtomicLine));
    if (written == 0) {
      break;
    }
    rest.remove_prefix(written);
  }
}

int refuse(ExitCode code, const std::string& text, const char* hint = "") {
  tell(text, hint);
  return static_cast<int>(code);
}

int refuse(const Failure& failure) {
  return refuse(failure.exit_code, failure.message);
}

// An error once the log is open. Whoever says `mayfly run` or `mayfly restore` is told in a sentence; the log
// has it where it is elsewhere.
void report_error(const Options& options, const std::string& text) {
  const bool is_monitor = options.subcommand == Subcommand::kMonitor;
  if (!is_monitor) {
    tell(text);
  }
  if (is_monitor || options.log.path) {
    LOG_ERROR("%s", text.c_str());
  }
}

// From what is to run to the exit code.
int run(const Options& options, BootTrace::Clock::time_point start, Ahead& ahead) {
  if (begins_at_once(options)) {
    ahead.host_kvm.start(options.subcommand == Subcommand::kRestore ? HostKvm::Purpose::kUse
                                                                    : HostKvm::Purpose::kTake);
  }
  open_log_on_stderr();
  if (auto installed = install_crash_handlers(); !installed) {
    return refuse(installed.error());
  }
  set_crash_hook(restore_terminal);
  set_syscall_names(syscall_name);
  if (options.subcommand == Subcommand::kRestore) {
    ahead.snapshot.emplace(options.load, ahead.host_kvm);  // the rest has time while KVM is busy with it
  }
  const auto plan = make_plan(options, this_process());
  if (!plan) {
    return refuse(plan.error());
  }
  if (auto kept = keep_inputs_from_outputs(options, *plan); !kept) {
    return refuse(kept.error());
  }
  if (auto opened = open_log_and_metrics(options, *plan); !opened) {
    return refuse(opened.error());
  }
  // Last: what was in it goes, which a start that is refused is not to bring about.
  const auto trace = open_boot_trace(options, start);
  if (!trace) {
    return refuse(trace.error());
  }

  record_startup_times(options.process_start);
  const auto outcome = run_microvm(options, *plan, ahead, trace->get());
  ExitCode code = ExitCode::kOk;
  if (!outcome) {
    code = outcome.error().exit_code;
    report_error(options, "cannot run the microVM: " + outcome.error().message);
  } else if (mayfly::exit_code_of(outcome->kind) == 0) {
    LOG_INFO("%s: %s", name_of(outcome->kind), outcome->detail.c_str());
  } else {
    code = ExitCode::kError;
    report_error(options,
                 std::string("the microVM failed: ") + name_of(outcome->kind) + ": " + outcome->detail);
  }
  if (*trace) {
    if (auto written = (*trace)->write(); !written) {
      report_error(options, "cannot " + written.error().message());
      code = code == ExitCode::kOk ? ExitCode::kError : code;
    }
  }
  return static_cast<int>(code);
}

int run_as_template(const Options& options) {
  open_log_on_stderr();
  if (auto installed = install_crash_handlers(); !installed) {
    return refuse(installed.error());
  }
  set_syscall_names(syscall_name);
  if (auto opened = open_log_and_metrics(options, Plan{}); !opened) {
    return refuse(opened.error());
  }
  const auto served = run_template(options);
  return served ? static_cast<int>(ExitCode::kOk) : refuse(served.error());
}

int examine_host() {
  const auto findings = examine(this_host());
  const bool told = std::fputs(report(findings).c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  return static_cast<int>(told && can_run(findings) ? ExitCode::kOk : ExitCode::kError);
}

// The answer for a script or a person.
int print(const std::string& text) {
  const bool told = std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  return static_cast<int>(told ? ExitCode::kOk : ExitCode::kError);
}

int describe_snapshot_file(const std::string& path) {
  constexpr const char* kFlag = "--describe-snapshot";
  const auto file = read_file(path, "snapshot", kMaxSnapshotState).map_error(blame_flag(kFlag));
  if (!file) {
    return refuse(file.error());
  }
  const auto text = describe_snapshot(std::as_bytes(std::span(*file)));
  return text ? print(*text) : refuse(blame_flag(kFlag)(text.error().within("snapshot " + path)));
}

int merge(const ShellOptions& options) {
  const auto merged = merge_memory(options.memory_path, options.diff_paths,
                                   options.output_path.value_or(options.memory_path));
  return merged ? static_cast<int>(ExitCode::kOk) : refuse(Failure(merged.error()));
}

int manage(const Options& options) {
  const auto answer =
      run_shell_command(options, this_users_processes(), [](const std::string& text) { tell(text); });
  return answer ? print(*answer) : refuse(answer.error());
}

int main_of(int argument_count, char** arguments) {
  const auto start = BootTrace::Clock::now();
  // One for all threads, before the first of them: another would come with calls of its own, which no filter
  // has to allow then, and costs memory. Nothing that is done often allocates.
  ::mallopt(M_ARENA_MAX, 1);
  if (const auto open = ensure_standard_descriptors(); !open) {
    return static_cast<int>(ExitCode::kError);  // there is nobody to tell
  }
  // A refusal that nobody reads is one all the same: it ends with its own exit code.
  ::signal(SIGPIPE, SIG_IGN);
  // The kernel reaps passt: a monitor that runs a guest has no call left that would.
  ::signal(SIGCHLD, SIG_IGN);
  const std::span<const char* const> given = {arguments + 1,
                                              static_cast<std::size_t>(std::max(argument_count, 1) - 1)};
  Ahead ahead;
  // Before all else where a guest is to run at once: what follows is shorter, and so is reading the flags.
  // Where callers of the API are to start a guest, the first of them comes before it.
  const std::string_view first = given.empty() ? "" : given.front();
  const bool asks_for_help =
      std::ranges::any_of(given, [](std::string_view word) { return word == "-h" || word == "--help"; });
  const bool begins = (first == "run" || first == "restore") && !asks_for_help;
  if (begins) {
    if (const auto closed = close_inherited(given); !closed) {
      return refuse(Failure(closed.error()));
    }
    ahead.host_kvm.start(first == "restore" ? HostKvm::Purpose::kUse : HostKvm::Purpose::kTake);
  }
  const auto options = parse_options(argument_count - 1, arguments + 1);
  if (!options) {
    const ParseStop& stop = options.error();
    if (stop.exit_code == 0) {
      return print(stop.text);
    }
    return refuse(ExitCode::kBadArguments, stop.text, stop.hint.c_str());
  }
  // A file that must not become as long is an error to be told of; a monitor counts that (signals.sigxfsz).
  const bool is_microvm =
      options->subcommand == Subcommand::kMonitor || options->subcommand == Subcommand::kRun ||
      options->subcommand == Subcommand::kRestore || options->subcommand == Subcommand::kTemplate;
  if (!is_microvm) {
    ::signal(SIGXFSZ, SIG_IGN);
  } else if (!begins) {
    if (const auto closed = close_inherited(given); !closed) {
      return refuse(Failure(closed.error()));
    }
  }
  switch (options->subcommand) {
    case Subcommand::kMonitor:
    case Subcommand::kRun:
    case Subcommand::kRestore:
      return run(*options, start, ahead);
    case Subcommand::kTemplate:
      return run_as_template(*options);
    case Subcommand::kDoctor:
      return examine_host();
    case Subcommand::kDescribeSnapshot:
      return describe_snapshot_file(*options->describe_snapshot);
    case Subcommand::kMerge:
      return merge(options->shell);
    case Subcommand::kCompletion:
      return print(completion_script(options->shell.shell, describe_program()));
    default:
      return manage(*options);
  }
}

}  // namespace
}  // namespace mayfly

int main(int argument_count, char** arguments) {
  return mayfly::main_of(argument_count, arguments);
}
