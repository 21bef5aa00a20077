// jailer: a microVM's monitor in a jail of its own.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <span>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/exit_code.h"
#include "base/text.h"
#include "base/unique_fd.h"
#include "cleanup.h"
#include "jail.h"
#include "options.h"

namespace mayfly::jail {
namespace {

constexpr std::size_t kMaxRefusal = 4096;

// Parts of the text come from the caller: what is not printable is escaped.
void tell(const std::string& text) {
  std::array<char, kMaxRefusal> storage{};
  TextBuffer escaped(storage);
  escaped.append_escaped(text);
  std::string line = "jailer: ";
  line.append(escaped.view()).append(escaped.truncated() ? "...\n" : "\n");
  const bool told = ::write(STDERR_FILENO, line.data(), line.size()) >= 0;
  static_cast<void>(told);  // there is nobody else to tell
}

int end(ExitCode code, const std::string& text) {
  tell(text);
  return static_cast<int>(code);
}

int print(const std::string& text) {
  const bool told = std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
  return static_cast<int>(told ? ExitCode::kOk : ExitCode::kError);
}

// Whatever the caller had open ends here. The standard files stay, and must not be a way out: a directory of
// the host's would be one (openat(2)).
Result<void> close_descriptors() {
  if (::close_range(STDERR_FILENO + 1, ~0U, 0) != 0) {
    return fail_errno(errno, "close the descriptors that were inherited");
  }
  for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    struct stat found {};
    if (::fstat(standard, &found) == 0 && S_ISDIR(found.st_mode)) {
      return fail(ErrorCode::kInvalidArgument, "descriptor " + std::to_string(standard) +
                                                   " is a directory, and would lead out of the jail");
    }
  }
  return {};
}

int run(Options options, const StartTimes& start) {
  if (options.action == Action::kCleanup) {
    const auto cleaned = clean_up(options);
    return cleaned ? 0 : end(ExitCode::kError, cleaned.error().message());
  }
  if (!options.rootless) {
    // Nobody may trace this process or read its memory, whoever it becomes. A user namespace takes its files
    // in /proc, which would be root's.
    ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (options.gid == 0) {
      tell("warning: --gid should not be 0, root's group");
    }
  }
  const bool is_dry = options.action == Action::kDryRun;
  auto plan = make_plan(std::move(options));
  if (!plan) {
    return end(ExitCode::kError, plan.error().message());
  }
  if (is_dry) {
    const auto fits = rehearse(*plan);
    return fits ? print(describe(*plan)) : end(ExitCode::kError, fits.error().message());
  }
  const auto ran = run_jail(std::move(*plan), start);
  return ran ? 0 : end(ExitCode::kError, ran.error().message());
}

int main_of(std::span<const char* const> arguments) {
  const StartTimes start{.monotonic_us = monotonic_ns() / 1000, .cpu_us = process_cpu_ns() / 1000};
  if (const auto open = ensure_standard_descriptors(); !open) {
    return static_cast<int>(ExitCode::kError);  // there is nobody to tell
  }
  ::signal(SIGPIPE, SIG_IGN);  // a refusal that nobody reads is one all the same
  ::signal(SIGCHLD, SIG_DFL);  // where it is ignored, no child's status is kept
  if (const auto closed = close_descriptors(); !closed) {
    return end(ExitCode::kError, closed.error().message());
  }
  auto options = parse_options(arguments);
  if (!options) {
    return options.error().refused ? end(ExitCode::kBadArguments, options.error().text)
                                   : print(options.error().text);
  }
  return run(std::move(*options), start);
}

}  // namespace
}  // namespace mayfly::jail

int main(int argument_count, char** arguments) {
  if (argument_count < 1) {
    return static_cast<int>(mayfly::ExitCode::kBadArguments);
  }
  return mayfly::jail::main_of({arguments + 1, static_cast<std::size_t>(argument_count) - 1});
}
