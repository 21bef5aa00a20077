#include "mayfly/shell.h"

#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

#include "api/clone_call.h"
#include "api/vm_client.h"
#include "base/text.h"
#include "mayfly/device_options.h"
#include "mayfly/plan.h"

namespace mayfly {
namespace {

// One that hangs does not hold up the list: each has this for either of two calls, and several are asked at a
// time.
constexpr std::chrono::milliseconds kListPatience{500};
constexpr std::size_t kAskedAtATime = 16;
// A monitor that is well answers within a second; what a person asked for is worth waiting longer.
constexpr std::chrono::seconds kCallPatience{10};
// The memory of a large guest, to a slow disk.
constexpr std::chrono::minutes kDiskPatience{30};
// Whoever wants a microVM ended waits for its guest, not for a monitor that hangs.
constexpr std::chrono::seconds kAskPatience{2};
// All clones of a call.
constexpr std::chrono::seconds kClonePatience{60};
// Between SIGTERM and the process's end there is nothing that waits for a guest.
constexpr std::chrono::seconds kTermPatience{10};

std::string escaped(std::string_view text) {
  std::string storage(text.size() * 4, '\0');  // the longest escape is \xNN
  TextBuffer buffer(storage);
  buffer.append_escaped(text);
  return std::string(buffer.view());
}

std::string json_string(std::string_view text) {
  std::string storage(text.size() * 6 + 2, '\0');  // the longest escape is \uNNNN
  TextBuffer buffer(storage);
  buffer.append_json_string(text);
  return std::string(buffer.view());
}

std::string json_string(const std::optional<std::string>& text) {
  return text ? json_string(std::string_view(*text)) : "null";
}

template <typename T>
std::string number_or(const std::optional<T>& number, const char* otherwise) {
  return number ? std::to_string(*number) : otherwise;
}

// Whether its id names another one as well.
bool is_shared(const std::vector<MonitorProcess>& processes, const MonitorProcess& process) {
  return std::ranges::any_of(processes, [&process](const MonitorProcess& other) {
    return other.pid != process.pid && (other.id == process.id || std::to_string(other.pid) == process.id);
  });
}

// "web (process 12)"
std::string describe(const MonitorProcess& process) {
  return process.id + (process.is_template ? " (template, process " : " (process ") +
         std::to_string(process.pid) + ")";
}

// Whoever is found may have written over its arguments, and name another's socket or id: only what listens at
// the socket itself is spoken to, and only by the id that it has.
api::VmClient client_of(const MonitorProcess& process, std::chrono::milliseconds patience) {
  return {process.socket_to_connect, {.timeout = patience, .listener = process.pid}};
}

Result<void> check_id(const MonitorProcess& process, const std::string& answered) {
  if (answered != process.id) {
    return fail(ErrorCode::kPermission, "it answers as \"" + escaped(answered) + "\"");
  }
  return {};
}

Result<api::VmStatus> status_of(const MonitorProcess& process, std::chrono::milliseconds patience) {
  MAYFLY_TRY_ASSIGN(api::VmStatus status, client_of(process, patience).status());
  MAYFLY_TRY(check_id(process, status.id));
  return status;
}

Result<void> look_at_template(const MonitorProcess& process) {
  MAYFLY_TRY_ASSIGN(const std::string id, client_of(process, kListPatience).id());
  return check_id(process, id);
}

std::string list_of(const std::vector<MonitorProcess>& processes) {
  std::string text;
  for (const MonitorProcess& process : processes) {
    text.append(text.empty() ? "" : ", ").append(describe(process));
    if (process.is_template && process.socket) {
      text.append(" at ").append(escaped(*process.socket));
    }
  }
  return text;
}

void ask(MicroVmRow& row) {
  if (!row.process.socket) {
    return;
  }
  if (row.process.is_template) {
    if (const auto answered = look_at_template(row.process)) {
      row.state = "Template";
    } else {
      row.problem = answered.error().message();
    }
    return;
  }
  const auto status = status_of(row.process, kListPatience);
  if (!status) {
    row.problem = status.error().message();
    return;
  }
  row.state = status->state;
  row.process.vcpus = status->vcpu_count;
  row.process.memory_mib = status->mem_size_mib;
}

std::vector<MicroVmRow> ask_all(const std::vector<MonitorProcess>& processes) {
  std::vector<MicroVmRow> rows;
  rows.reserve(processes.size());
  for (const MonitorProcess& process : processes) {
    rows.push_back({.process = process, .state = {}, .problem = {}});
  }
  std::atomic<std::size_t> next = 0;
  const auto work = [&rows, &next] {
    for (std::size_t index = next++; index < rows.size(); index = next++) {
      ask(rows[index]);
    }
  };
  std::vector<std::thread> helpers;
  try {
    while (helpers.size() + 1 < std::min(rows.size(), kAskedAtATime)) {
      helpers.emplace_back(work);
    }
  } catch (const std::system_error&) {
    // With fewer threads it takes longer.
  }
  work();
  for (std::thread& helper : helpers) {
    helper.join();
  }
  return rows;
}

// Whether the process ended in time.
bool wait_for_end(const UniqueFd& process, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  for (;;) {
    const auto left = std::max(
        std::chrono::milliseconds(0),
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()));
    pollfd ready{.fd = process.get(), .events = POLLIN, .revents = 0};
    const int count = ::poll(&ready, 1, static_cast<int>(left.count()));
    if (count >= 0 || errno != EINTR) {
      return count > 0;
    }
  }
}

// Asks the guest to shut down. Nothing: it was asked; else why it cannot be.
std::optional<std::string> ask_to_shut_down(const MonitorProcess& process) {
  if (!process.socket) {
    return "it has no control API";
  }
  const auto status = status_of(process, kAskPatience);
  if (!status) {
    return status.error().message();
  }
  if (status->state == "Not started") {
    return "it has no guest, as it has not been started";
  }
  if (status->state == "Paused") {
    return "it is paused";
  }
  const auto sent = client_of(process, kAskPatience).send_ctrl_alt_del();
  return sent ? std::nullopt : std::optional(sent.error().message());
}

// As the monitor, whose working directory may be another, is to be told.
std::string absolute(const std::string& path) {
  std::error_code failed;
  const auto whole = std::filesystem::absolute(path, failed);
  return failed ? path : whole.string();
}

std::optional<std::string> absolute(const std::optional<std::string>& path) {
  return path ? std::optional(absolute(*path)) : std::nullopt;
}

Result<void> snapshot(const api::VmClient& client, const ShellOptions& options) {
  MAYFLY_TRY_ASSIGN(const api::VmStatus status, client.status());
  const SnapshotRequest request{.state_path = absolute(options.state_path),
                                .memory_path = absolute(options.memory_path),
                                .kind = options.diff ? SnapshotKind::kDiff : SnapshotKind::kFull,
                                .live = options.live};
  const bool pauses = status.state == "Running" && !options.live;
  if (pauses) {
    MAYFLY_TRY(client.pause());
  }
  auto created = client.create_snapshot(request);
  if (pauses) {
    MAYFLY_TRY(client.resume());
  }
  return created;
}

using Tell = std::function<void(const std::string&)>;

OrFailure<std::string> stop(const MonitorProcess& process, const ProcessView& view,
                            const ShellOptions& options, const Tell& tell) {
  MAYFLY_TRY_ASSIGN(const std::optional<UniqueFd> fd, open_process(view, process));
  if (!fd) {
    return "";
  }
  if (!options.now && !process.is_template) {
    const auto reason = ask_to_shut_down(process);
    if (!reason && wait_for_end(*fd, std::chrono::seconds(options.timeout_s))) {
      return "";
    }
    tell(describe(process) +
         (reason ? " cannot be asked to shut down: " + *reason
                 : " has not shut down within " + std::to_string(options.timeout_s) + " s") +
         "; ending it by SIGTERM");
  }
  // By the descriptor: the process's number may be another's by now.
  if (::syscall(SYS_pidfd_send_signal, fd->get(), SIGTERM, nullptr, 0) != 0 && errno != ESRCH) {
    return tl::make_unexpected(Failure(Error::from_errno(errno, "send SIGTERM to " + describe(process))));
  }
  if (!wait_for_end(*fd, kTermPatience)) {
    return tl::make_unexpected(Failure(ExitCode::kError, describe(process) + " does not end; 'kill -KILL " +
                                                             std::to_string(process.pid) +
                                                             "' ends it without tidying up"));
  }
  return "";
}

struct TemplateSocket {
  std::string path;
  std::string shown{};  // as a person names it
  std::optional<pid_t> listener{};
};

// A clone's socket as its template names it, from here: it lies beside the template's, whose folder a
// relative path is of.
std::string from_here(const std::string& socket, const TemplateSocket& of_template) {
  if (socket.starts_with('/')) {
    return socket;
  }
  return of_template.shown.substr(0, of_template.shown.rfind('/') + 1) + socket.substr(socket.rfind('/') + 1);
}

bool is_socket(const std::string& path) {
  struct stat there {};
  return ::stat(path.c_str(), &there) == 0 && S_ISSOCK(there.st_mode);
}

// What was to be asked of a template whose socket is at `path`, where nobody could be reached.
Error explain_silence(const Error& error, const std::string& path) {
  constexpr const char* kStart = "mayfly template STATE MEMORY --api-sock PATH";
  if (error.os_errno() == ENOENT) {
    return {ErrorCode::kNotFound,
            std::string("there is no such socket; a template is started by '") + kStart + "'"};
  }
  if (error.os_errno() != ECONNREFUSED) {
    return error;
  }
  return {ErrorCode::kNotFound,
          is_socket(path)
              ? std::string("no template listens there, the socket is left over by one that has ended; "
                            "remove it and start one by '") +
                    kStart + "'"
              : std::string("it is no socket")};
}

// Where the template answers: `name` is a socket's path where it has a '/'.
OrFailure<TemplateSocket> find_template(const ProcessView& view, const std::string& name) {
  if (name.find('/') != std::string::npos) {
    return TemplateSocket{.path = name, .shown = name};
  }
  MAYFLY_TRY_ASSIGN(std::vector<MonitorProcess> templates, find_monitors(view));
  std::erase_if(templates, [](const MonitorProcess& process) { return !process.is_template; });
  std::vector<MonitorProcess> named;
  std::ranges::copy_if(templates, std::back_inserter(named), [&name](const MonitorProcess& process) {
    return process.id == name || std::to_string(process.pid) == name;
  });
  if (named.size() == 1) {
    const MonitorProcess& found = named.front();
    return TemplateSocket{.path = found.socket_to_connect,
                          .shown = found.socket.value_or(found.socket_to_connect),
                          .listener = found.pid};
  }
  return tl::make_unexpected(Failure(
      ExitCode::kError,
      named.empty()
          ? "there is no template \"" + name + "\" of this user; " +
                (templates.empty() ? "none is running" : "running are: " + list_of(templates)) +
                (is_socket(name) ? "; for the socket of this name in this folder write ./" + name : "")
          : "several templates are called \"" + name +
                "\": name one by the number of its process or its socket's path: " + list_of(named)));
}

OrFailure<std::string> clone(const ProcessView& view, const Options& options) {
  const CloneOptions& wanted = options.clones;
  MAYFLY_TRY_ASSIGN(const TemplateSocket socket, find_template(view, wanted.template_name));
  // The template's folder is not this one.
  const auto serial_path = absolute(wanted.serial_path);
  LoadRequest load = options.load;
  load.resume = !wanted.paused;
  for (DriveOverride& change : load.drives) {
    MAYFLY_TRY(check_drive_words(change.path.value_or(""), DriveWords::kOverlayOnly, this_process().exists)
                   .map_error(blame_flag("--disk")));
    change.path = absolute(change.path);
    if (change.overlay) {
      change.overlay->path = absolute(change.overlay->path);
    }
  }
  const api::CloneRequest request{.count = wanted.count,
                                  .id_prefix = wanted.id_prefix,
                                  .api = !wanted.no_api,
                                  .serial_path = serial_path,
                                  .load = std::move(load)};
  MAYFLY_TRY_ASSIGN(
      const std::vector<api::BornClone> born,
      api::ask_for_clones(socket.path, {.timeout = kClonePatience, .listener = socket.listener}, request)
          .map_error([&](const Error& error) {
            return Failure(explain_silence(error, socket.path).within("template " + wanted.template_name));
          }));
  std::string text;
  for (const api::BornClone& each : born) {
    text.append(std::to_string(each.pid))
        .append(" ")
        .append(escaped(each.id))
        .append(" ")
        .append(each.socket ? escaped(from_here(*each.socket, socket)) : "-")
        .append("\n");
  }
  return text;
}

OrFailure<std::string> call(const MonitorProcess& process, const Options& options) {
  if (process.is_template) {
    return tl::make_unexpected(
        Failure(ExitCode::kError,
                describe(process) + " runs no guest; its clones are microVMs of their own, see 'mayfly ps'"));
  }
  if (!process.socket) {
    return tl::make_unexpected(
        Failure(ExitCode::kError,
                describe(process) + " has no control API: start it with --api-sock PATH to have one"));
  }
  const bool writes =
      options.subcommand == Subcommand::kSnapshot || options.subcommand == Subcommand::kWorkingSet;
  const std::chrono::milliseconds patience = writes ? kDiskPatience : kCallPatience;
  const api::VmClient client = client_of(process, patience);
  const auto answer = [&]() -> Result<std::string> {
    const auto nothing = [] { return std::string(); };
    switch (options.subcommand) {
      case Subcommand::kSnapshot:
        return snapshot(client, options.shell).map(nothing);
      case Subcommand::kWorkingSet:
        return client.write_working_set(absolute(options.shell.working_set_path)).map(nothing);
      case Subcommand::kPause:
        return client.pause().map(nothing);
      case Subcommand::kResume:
        return client.resume().map(nothing);
      case Subcommand::kMetrics:
        return client.metrics();
      default:
        return client.configuration();
    }
  }();
  return answer.map_error([&](const Error& error) {
    return Failure(ExitCode::kError, describe(process) + " at " + *process.socket + ": " + error.message());
  });
}

}  // namespace

std::string table_of(const std::vector<MicroVmRow>& rows) {
  using Line = std::array<std::string, 6>;
  std::vector<Line> lines = {{"NAME", "PID", "STATE", "VCPUS", "MEMORY", "SOCKET"}};
  for (const MicroVmRow& row : rows) {
    const MonitorProcess& process = row.process;
    lines.push_back({escaped(process.id), std::to_string(process.pid),
                     row.state        ? escaped(*row.state)
                     : process.socket ? "?"
                                      : "-",
                     number_or(process.vcpus, "-"),
                     process.memory_mib ? std::to_string(*process.memory_mib) + "M" : "-",
                     process.socket ? escaped(*process.socket) : "-"});
  }
  std::array<std::size_t, std::tuple_size_v<Line>> widths{};
  for (const Line& line : lines) {
    for (std::size_t column = 0; column < line.size(); ++column) {
      widths.at(column) = std::max(widths.at(column), line.at(column).size());
    }
  }
  std::string text;
  for (const Line& line : lines) {
    for (std::size_t column = 0; column + 1 < line.size(); ++column) {
      const std::string& cell = line.at(column);
      text.append(cell).append(widths.at(column) - cell.size() + 2, ' ');
    }
    text.append(line.back()).append("\n");
  }
  return text;
}

std::string json_of(const std::vector<MicroVmRow>& rows) {
  std::string text = "[";
  for (const MicroVmRow& row : rows) {
    const MonitorProcess& process = row.process;
    text.append(text.size() == 1 ? "\n" : ",\n")
        .append("  {\"name\": ")
        .append(json_string(std::string_view(process.id)))
        .append(", \"pid\": ")
        .append(std::to_string(process.pid))
        .append(", \"state\": ")
        .append(json_string(row.state))
        .append(", \"vcpu_count\": ")
        .append(number_or(process.vcpus, "null"))
        .append(", \"mem_size_mib\": ")
        .append(number_or(process.memory_mib, "null"))
        .append(", \"socket\": ")
        .append(json_string(process.socket))
        .append(", \"problem\": ")
        .append(json_string(row.problem))
        .append("}");
  }
  return text.append(rows.empty() ? "]\n" : "\n]\n");
}

std::string names_of(const std::vector<MonitorProcess>& processes) {
  std::string text;
  for (const MonitorProcess& process : processes) {
    text.append(is_shared(processes, process) ? std::to_string(process.pid) : process.id).append("\n");
  }
  return text;
}

OrFailure<MonitorProcess> choose(const std::vector<MonitorProcess>& processes, const std::string& name) {
  std::vector<MonitorProcess> named;
  // One whose id is another's number may have taken it to be ended or left in the other's place.
  std::ranges::copy_if(processes, std::back_inserter(named), [&name](const MonitorProcess& process) {
    return process.id == name || std::to_string(process.pid) == name;
  });
  if (named.size() == 1) {
    return named.front();
  }
  if (!named.empty()) {
    return tl::make_unexpected(
        Failure(ExitCode::kError,
                "several microVMs are called \"" + name +
                    "\", by their ids or by the numbers of their processes: name one by the other: " +
                    list_of(named)));
  }
  return tl::make_unexpected(Failure(
      ExitCode::kError, "there is no microVM \"" + name + "\" of this user; " +
                            (processes.empty() ? "none is running" : "running are: " + list_of(processes))));
}

OrFailure<std::string> run_shell_command(const Options& options, const ProcessView& view, const Tell& tell) {
  if (options.subcommand == Subcommand::kClone) {
    return clone(view, options);
  }
  MAYFLY_TRY_ASSIGN(std::vector<MonitorProcess> processes, find_monitors(view));
  if (options.subcommand == Subcommand::kPs) {
    if (options.shell.templates) {
      std::erase_if(processes, [](const MonitorProcess& process) { return !process.is_template; });
    }
    if (options.shell.quiet) {
      return names_of(processes);
    }
    const std::vector<MicroVmRow> rows = ask_all(processes);
    return options.shell.json ? json_of(rows) : table_of(rows);
  }
  MAYFLY_TRY_ASSIGN(const MonitorProcess process, choose(processes, options.shell.name));
  return options.subcommand == Subcommand::kStop ? stop(process, view, options.shell, tell)
                                                 : call(process, options);
}

}  // namespace mayfly
