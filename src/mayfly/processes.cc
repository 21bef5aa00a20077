#include "mayfly/processes.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "mayfly/options.h"
#include "mayfly/process_title.h"

namespace mayfly {
namespace {

// Longer command lines than the kernel's own default limit for all arguments are nobody's.
constexpr std::size_t kMaxArguments = std::size_t{2} << 20;
constexpr std::size_t kMaxStatus = 65536;
constexpr std::string_view kProgram = "mayfly";

// The target of a link of /proc; nothing where it may not be read.
std::optional<std::string> link_target(const std::string& path) {
  std::array<char, PATH_MAX> target;
  const ssize_t size = ::readlink(path.c_str(), target.data(), target.size());
  return size < 0 ? std::nullopt
                  : std::optional<std::string>(std::string(target.data(), static_cast<std::size_t>(size)));
}

// The value behind "Name:" of /proc/PID/status, without the blanks before it.
std::optional<std::string_view> field_of(std::string_view status, std::string_view name) {
  while (!status.empty()) {
    std::string_view line = status.substr(0, status.find('\n'));
    status.remove_prefix(std::min(status.size(), line.size() + 1));
    if (line.starts_with(name) && line.substr(name.size()).starts_with(":")) {
      line.remove_prefix(name.size() + 1);
      line.remove_prefix(std::min(line.size(), line.find_first_not_of(" \t")));
      return line;
    }
  }
  return std::nullopt;
}

template <typename T>
std::optional<T> first_number(std::optional<std::string_view> text) {
  return text ? parse_integer<T>(text->substr(0, text->find_first_of(" \t"))) : std::nullopt;
}

// Field 22 of /proc/PID/stat (proc(5)). The name before it is in parentheses and may hold any character.
std::optional<std::uint64_t> start_time_of(const std::string& folder) {
  const auto stat = read_file(folder + "/stat", "process", kMaxStatus);
  const std::size_t end = stat ? stat->rfind(')') : std::string::npos;
  if (end == std::string::npos) {
    return std::nullopt;
  }
  std::string_view rest = std::string_view(*stat).substr(end + 1);
  constexpr int kFieldsBetween = 20;
  for (int field = 0; field < kFieldsBetween; ++field) {
    const std::size_t blank = rest.find(' ');
    if (blank == std::string_view::npos) {
      return std::nullopt;
    }
    rest.remove_prefix(blank + 1);
  }
  return parse_integer<std::uint64_t>(rest.substr(0, rest.find(' ')));
}

// A program that was replaced while it runs is followed by " (deleted)".
bool is_our_program(const std::string& folder, std::string_view status) {
  if (field_of(status, "Name") == kProgram) {
    return true;
  }
  const auto program = link_target(folder + "/exe");
  if (!program) {
    return false;
  }
  std::string_view name = std::string_view(*program).substr(program->rfind('/') + 1);
  constexpr std::string_view kReplaced = " (deleted)";
  if (name.ends_with(kReplaced)) {
    name.remove_suffix(kReplaced.size());
  }
  return name == kProgram;
}

std::vector<std::string> split_arguments(std::string_view text) {
  std::vector<std::string> arguments;
  while (!text.empty()) {
    const std::string_view argument = text.substr(0, text.find('\0'));
    arguments.emplace_back(argument);
    text.remove_prefix(std::min(text.size(), argument.size() + 1));
  }
  return arguments;
}

bool is_monitor(Subcommand subcommand) {
  return subcommand == Subcommand::kMonitor || subcommand == Subcommand::kRun ||
         subcommand == Subcommand::kRestore || subcommand == Subcommand::kTemplate;
}

// What the program itself makes of its arguments; nothing where they are not those of a monitor.
std::optional<Options> options_of(std::string_view command_line) {
  std::vector<std::string> arguments = split_arguments(command_line);
  if (arguments.size() > 1 && arguments[1].starts_with(kCloneMark)) {
    arguments[1] = "run";
    // Where they were written over longer ones, empty ones follow.
    std::erase(arguments, "");
  }
  std::vector<const char*> pointers;
  pointers.reserve(arguments.size());
  for (const std::string& argument : arguments) {
    pointers.push_back(argument.c_str());
  }
  if (pointers.size() < 2) {
    return std::nullopt;
  }
  auto options = parse_options(static_cast<int>(pointers.size()) - 1, pointers.data() + 1);
  if (!options || !is_monitor(options->subcommand)) {
    return std::nullopt;
  }
  return std::move(*options);
}

// By the process's own eyes: a relative path starts at its folder, an absolute one at its root.
void locate_socket(const std::string& folder, const std::string& path, MonitorProcess& process) {
  const bool is_absolute = path.starts_with('/');
  const std::string_view link = is_absolute ? "/root" : "/cwd";
  const auto base = link_target(folder + std::string(link));
  const std::string slash = is_absolute ? "" : "/";
  process.socket = base && *base != "/" ? *base + slash + path : base && !is_absolute ? "/" + path : path;
  process.socket_to_connect = base ? folder + std::string(link) + slash + path : path;
}

struct Found {
  MonitorProcess process;
  pid_t parent = 0;
  std::string command_line;
};

std::optional<Found> look_at(const ProcessView& view, pid_t pid) {
  const std::string folder = view.proc + "/" + std::to_string(pid);
  const auto status = read_file(folder + "/status", "process", kMaxStatus);
  if (!status || first_number<uid_t>(field_of(*status, "Uid")) != view.user ||
      !is_our_program(folder, *status)) {
    return std::nullopt;
  }
  const auto start_time = start_time_of(folder);
  auto command_line = read_file(folder + "/cmdline", "process", kMaxArguments);
  if (!start_time || !command_line) {
    return std::nullopt;
  }
  const auto options = options_of(*command_line);
  if (!options) {
    return std::nullopt;
  }
  Found found{.process = {},
              .parent = first_number<pid_t>(field_of(*status, "PPid")).value_or(0),
              .command_line = std::move(*command_line)};
  MonitorProcess& process = found.process;
  process.pid = pid;
  process.start_time = *start_time;
  process.id = options->id;
  process.is_template = options->subcommand == Subcommand::kTemplate;
  if (options->subcommand == Subcommand::kRun) {
    process.vcpus = options->run.cpus;
    process.memory_mib = options->run.memory_mib;
  }
  if (options->api_socket) {
    locate_socket(folder, *options->api_socket, process);
  }
  return found;
}

// A monitor's child is its copy until it becomes another program.
bool is_copy(const Found& child, const std::vector<Found>& all) {
  return std::ranges::any_of(all, [&child](const Found& other) {
    return other.process.pid == child.parent && other.command_line == child.command_line;
  });
}

}  // namespace

ProcessView this_users_processes() {
  return {.user = ::getuid()};
}

Result<std::vector<MonitorProcess>> find_monitors(const ProcessView& view) {
  std::vector<Found> all;
  std::error_code error;
  std::filesystem::directory_iterator entry(view.proc, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (const auto pid = parse_integer<pid_t>(entry->path().filename().native()); pid && *pid > 0) {
      if (auto found = look_at(view, *pid)) {
        all.push_back(std::move(*found));
      }
    }
  }
  if (error) {
    return fail_errno(error.value(), "read " + view.proc);
  }
  std::vector<MonitorProcess> monitors;
  for (const Found& found : all) {
    if (!is_copy(found, all)) {
      monitors.push_back(found.process);
    }
  }
  std::ranges::sort(monitors, {}, &MonitorProcess::pid);
  return monitors;
}

Result<std::optional<UniqueFd>> open_process(const ProcessView& view, const MonitorProcess& process) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, process.pid, 0)));
  if (!fd && errno != ESRCH) {
    return fail_errno(errno, "open process " + std::to_string(process.pid));
  }
  // Its number may have become another's before the descriptor held on to it.
  if (!fd || start_time_of(view.proc + "/" + std::to_string(process.pid)) != process.start_time) {
    return std::nullopt;
  }
  return fd;
}

}  // namespace mayfly
