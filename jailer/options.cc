#include "options.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <set>
#include <utility>

#include "base/text.h"

namespace mayfly::jail {
namespace {

constexpr std::size_t kMaxShown = 80;
constexpr std::size_t kMaxName = 255;  // NAME_MAX
constexpr std::size_t kMaxPath = 4095;
constexpr std::size_t kMaxValue = 4095;
constexpr std::string_view kPidSuffix = ".pid";

using Checked = Result<void>;

tl::unexpected<Error> refuse(std::string_view flag, std::string_view value, std::string_view rule) {
  return fail(ErrorCode::kInvalidArgument,
              std::string(flag).append(" ").append(shown(value)).append(": ").append(rule));
}

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
         c == '.';
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kMaxName && text != "." && text != ".." &&
         std::ranges::all_of(text, is_name_character);
}

bool is_printable(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; });
}

// Components of one slash or more between them; a leading slash is the caller's to look for.
std::vector<std::string_view> components(std::string_view path) {
  std::vector<std::string_view> found;
  while (!path.empty()) {
    const std::string_view name = path.substr(0, path.find('/'));
    if (!name.empty()) {
      found.push_back(name);
    }
    path.remove_prefix(std::min(path.size(), name.size() + 1));
  }
  return found;
}

bool stays_below(std::string_view path) {
  return std::ranges::none_of(components(path), [](std::string_view name) {
    return name == "." || name == ".." || name.size() > kMaxName;
  });
}

Checked take_id(Options& options, std::string_view flag, std::string_view value) {
  if (!is_instance_id(value)) {
    return refuse(flag, value, "must be 1 to 64 letters, digits and '-'");
  }
  options.id = value;
  return {};
}

Checked take_exec_file(Options& options, std::string_view flag, std::string_view value) {
  if (value.size() > kMaxPath || !is_printable(value)) {
    return refuse(flag, value, "must be a path of at most 4095 printable characters");
  }
  const std::string_view name = value.substr(value.find_last_of('/') + 1);  // npos + 1 is 0
  if (!is_name(name)) {
    return refuse(flag, value,
                  "its last part names folders, so it must be letters, digits, '.', '_' and '-'");
  }
  if (name.size() + kPidSuffix.size() > kMaxName) {
    return refuse(flag, value,
                  "its last part, with \".pid\" behind it, must be a file's name: 255 characters");
  }
  if (name == "dev" || name == "run") {
    return refuse(flag, value, "its last part is a file in the jail, which has a folder of that name");
  }
  options.exec_file = value;
  options.exec_name = name;
  return {};
}

// All bits set means "leave it as it is" to the kernel.
Checked take_user(std::uint32_t& user, std::string_view flag, std::string_view value) {
  const bool is_decimal = std::ranges::all_of(value, [](char c) { return c >= '0' && c <= '9'; }) &&
                          (value.size() == 1 || !value.starts_with('0'));
  const auto number = is_decimal ? parse_integer<std::uint32_t>(value) : std::nullopt;
  if (!number || *number == std::numeric_limits<std::uint32_t>::max()) {
    return refuse(flag, value, "must be a decimal number from 0 to 4294967294");
  }
  user = *number;
  return {};
}

Checked take_base(Options& options, std::string_view flag, std::string_view value) {
  if (!value.starts_with('/') || value.size() > kMaxPath || !is_printable(value) || !stays_below(value)) {
    return refuse(flag, value, "must be an absolute path without '.' and '..', of printable characters");
  }
  options.chroot_base.clear();
  for (const std::string_view name : components(value)) {
    options.chroot_base.append("/").append(name);
  }
  if (options.chroot_base.empty()) {
    return refuse(flag, value, "must not be the root directory");
  }
  return {};
}

Checked take_netns(Options& options, std::string_view flag, std::string_view value) {
  if (value.empty() || value.size() > kMaxPath) {
    return refuse(flag, value, "must be the path of a network namespace");
  }
  options.netns = value;
  return {};
}

Checked take_cgroup(Options& options, std::string_view flag, std::string_view value) {
  const std::size_t equals = value.find('=');
  const std::string_view file = value.substr(0, equals);
  const std::size_t dot = file.find('.');
  if (equals == std::string_view::npos || equals + 1 == value.size()) {
    return refuse(flag, value, "must be FILE=VALUE, such as cpu.shares=512");
  }
  if (!is_name(file) || dot == std::string_view::npos || dot == 0 || dot + 1 == file.size()) {
    return refuse(flag, value, "the file must be a controller's, such as cpu.shares: CONTROLLER.NAME");
  }
  if (file.starts_with("cgroup.")) {
    return refuse(flag, value, "files of cgroup. are the hierarchy's own, and no controller's");
  }
  CgroupSetting setting{.file = std::string(file), .value = std::string(value.substr(equals + 1))};
  if (setting.value.size() > kMaxValue || !is_printable(setting.value)) {
    return refuse(flag, value, "the value must be at most 4095 printable characters");
  }
  options.cgroups.push_back(std::move(setting));
  return {};
}

Checked take_cgroup_version(Options& options, std::string_view flag, std::string_view value) {
  if (value != "1" && value != "2") {
    return refuse(flag, value, "must be 1 or 2");
  }
  options.cgroup_version = value == "1" ? CgroupVersion::k1 : CgroupVersion::k2;
  return {};
}

Checked take_parent_cgroup(Options& options, std::string_view flag, std::string_view value) {
  const auto names = components(value);
  const auto is_group_name = [](std::string_view name) { return !name.empty() && name.size() <= kMaxName; };
  if (value.starts_with('/') || names.empty() || value.size() > kMaxPath || !is_printable(value) ||
      !stays_below(value) || !std::ranges::all_of(names, is_group_name)) {
    return refuse(flag, value, "must be a path below a hierarchy's root: relative, without '.' and '..'");
  }
  std::string parent;
  for (const std::string_view name : names) {
    parent.append(parent.empty() ? "" : "/").append(name);
  }
  options.parent_cgroup = std::move(parent);
  return {};
}

// More than a jail has open itself when its limits are set: 32 were seen, with seven hierarchies of cgroups.
constexpr std::uint64_t kFewestFiles = 64;

Checked take_limit(Options& options, std::string_view flag, std::string_view value) {
  const std::size_t equals = value.find('=');
  const std::string_view name = value.substr(0, equals);
  if (equals == std::string_view::npos || (name != "fsize" && name != "no-file")) {
    return refuse(flag, value, "must be fsize=BYTES or no-file=COUNT");
  }
  const auto number = parse_integer<std::uint64_t>(value.substr(equals + 1));
  if (!number || *number == std::numeric_limits<std::uint64_t>::max()) {
    return refuse(flag, value, "the limit must be a number below 2^64 - 1");
  }
  if (name == "fsize") {
    options.fsize = number;
  } else if (*number < kFewestFiles) {
    return refuse(flag, value, "a jail and its monitor need " + std::to_string(kFewestFiles) + " open files");
  } else {
    options.no_file = *number;
  }
  return {};
}

struct Flag {
  const char* name;
  const char* value;  // what stands for it in help, or nullptr where it takes none
  const char* help;
  Checked (*take)(Options&, std::string_view flag, std::string_view value);
  bool repeatable = false;
};

constexpr std::array kFlags = {
    Flag{"--id", "ID", "name of the microVM: 1 to 64 letters, digits and '-'; needed", take_id},
    Flag{"--exec-file", "FILE", "the monitor: a static program, copied into the jail; needed",
         take_exec_file},
    Flag{"--uid", "N", "user that the monitor runs as; needed, but for --cleanup",
         [](Options& options, std::string_view flag, std::string_view value) -> Checked {
           return take_user(options.uid, flag, value);
         }},
    Flag{"--gid", "N", "its group; needed, but for --cleanup",
         [](Options& options, std::string_view flag, std::string_view value) -> Checked {
           return take_user(options.gid, flag, value);
         }},
    Flag{"--chroot-base-dir", "DIR", "where jails are made (default: /srv/jailer)", take_base},
    Flag{"--netns", "FILE", "join this network namespace, such as /run/netns/vm1", take_netns},
    Flag{"--new-pid-ns", nullptr, "give the monitor a PID namespace of its own; jailer ends when it runs",
         [](Options& options, std::string_view, std::string_view) -> Checked {
           options.new_pid_ns = true;
           return {};
         }},
    Flag{"--daemonize", nullptr,
         "detach it: a session of its own, /dev/null as its standard files; jailer ends when it runs",
         [](Options& options, std::string_view, std::string_view) -> Checked {
           options.daemonize = true;
           return {};
         }},
    Flag{"--cgroup", "FILE=VALUE", "set a file of its cgroup, such as cpu.shares=512; may be repeated",
         take_cgroup, true},
    Flag{"--cgroup-version", "1|2", "which hierarchy --cgroup means (default: 1)", take_cgroup_version},
    Flag{"--parent-cgroup", "PATH", "the cgroup to make its cgroup in, relative (default: FILE's name)",
         take_parent_cgroup},
    Flag{"--resource-limit", "NAME=N",
         "fsize=BYTES, the largest file, or no-file=COUNT, open files (default: 2048); may be repeated",
         take_limit, true},
    Flag{"--core-scheduling", nullptr, "never share a core's threads with another microVM",
         [](Options& options, std::string_view, std::string_view) -> Checked {
           options.core_scheduling = true;
           return {};
         }},
    Flag{"--rootless", nullptr, "without root, in a user namespace: for a developer's machine",
         [](Options& options, std::string_view, std::string_view) -> Checked {
           options.rootless = true;
           return {};
         }},
    Flag{"--dry-run", nullptr, "check everything, say what would be done, do nothing",
         [](Options& options, std::string_view, std::string_view) -> Checked {
           options.action = Action::kDryRun;
           return {};
         }},
    Flag{"--cleanup", nullptr, "remove what a jail that has ended left: its folder and its cgroups",
         [](Options& options, std::string_view, std::string_view) -> Checked {
           options.action = Action::kCleanup;
           return {};
         }},
};

tl::unexpected<Stop> refused(std::string text) {
  return tl::make_unexpected(Stop{true, std::move(text)});
}

// Combinations. What --cleanup does not use is refused too: it might be thought to matter.
Checked check_together(const Options& options, const std::set<std::string, std::less<>>& given) {
  std::vector<std::string_view> needed = {"--id", "--exec-file"};
  if (options.action != Action::kCleanup) {
    needed.insert(needed.end(), {"--uid", "--gid"});
  }
  for (const std::string_view flag : needed) {
    if (!given.contains(flag)) {
      return fail(ErrorCode::kInvalidArgument, std::string(flag) + " is missing");
    }
  }
  if (given.contains("--cleanup")) {
    for (const std::string_view other : {"--dry-run", "--daemonize", "--new-pid-ns", "--cgroup",
                                         "--resource-limit", "--netns", "--core-scheduling"}) {
      if (given.contains(other)) {
        return fail(ErrorCode::kInvalidArgument,
                    "--cleanup and " + std::string(other) + " do not go together");
      }
    }
    if (!options.monitor_arguments.empty()) {
      return fail(ErrorCode::kInvalidArgument, "--cleanup takes no arguments for a monitor (behind --)");
    }
  }
  if (options.uid == 0 && options.action != Action::kCleanup && !options.rootless) {
    return fail(
        ErrorCode::kInvalidArgument,
        "--uid 0: must not be root, who without any capability still owns the host's files; give each "
        "microVM a user of its own");
  }
  if (options.rootless && options.netns) {
    return fail(ErrorCode::kInvalidArgument,
                "--rootless and --netns do not go together: to join a network namespace takes root");
  }
  return {};
}

}  // namespace

std::string shown(std::string_view value) {
  const bool is_long = value.size() > kMaxShown;
  std::string text = "\"" + std::string(value.substr(0, kMaxShown)) + (is_long ? "...\"" : "\"");
  if (is_long) {
    text += " (" + std::to_string(value.size()) + " characters)";
  }
  return text;
}

std::string help_text() {
  std::string text =
      "Usage: jailer --id ID --exec-file FILE --uid N --gid N [OPTION...] [-- MONITOR'S OPTION...]\n"
      "       jailer --cleanup --id ID --exec-file FILE [OPTION...]\n"
      "\n"
      "Runs a microVM's monitor in a jail of its own, DIR/FILE's name/ID/root: a root directory with nothing "
      "in\n"
      "it but the monitor and the devices it needs, namespaces, limits, an ordinary user, no capabilities.\n"
      "\n";
  constexpr std::size_t kColumn = 30;
  const auto line = [&text](std::string left, std::string_view help) {
    left.insert(0, "  ");
    left.append(left.size() < kColumn ? kColumn - left.size() : 2, ' ');
    text.append(left).append(help).append("\n");
  };
  for (const Flag& flag : kFlags) {
    line(std::string(flag.name) + (flag.value != nullptr ? std::string(" ") + flag.value : ""), flag.help);
  }
  line("--version", "print the version");
  line("--help", "print this");
  text +=
      "\n"
      "The monitor is started as FILE --id ID --start-time-us N --start-time-cpu-us N --parent-cpu-time-us "
      "N,\n"
      "followed by what stands behind --. Where that says neither --api-sock nor --no-api, the control API "
      "is\n"
      "at run/FILE's name.socket in the jail.\n"
      "\n"
      "Exit status: that of the monitor; 153 the arguments cannot be used, 1 another failure: what was made "
      "is\n"
      "gone again. With --daemonize or --new-pid-ns: 0 once the monitor runs.\n";
  return text;
}

tl::expected<Options, Stop> parse_options(std::span<const char* const> arguments) {
  Options options;
  std::set<std::string, std::less<>> given;
  std::set<std::string, std::less<>> limits;
  while (!arguments.empty()) {
    const std::string_view word = arguments.front();
    arguments = arguments.subspan(1);
    if (word == "--") {
      options.monitor_arguments.assign(arguments.begin(), arguments.end());
      break;
    }
    if (word == "--help" || word == "-h") {
      return tl::make_unexpected(Stop{false, help_text()});
    }
    if (word == "--version") {
      return tl::make_unexpected(Stop{false, "jailer " MAYFLY_VERSION "\n"});
    }
    const std::size_t equals = word.find('=');
    const std::string_view name = word.substr(0, equals);
    const auto* const flag =
        std::ranges::find_if(kFlags, [name](const Flag& one) { return one.name == name; });
    if (flag == kFlags.end()) {
      return refused("there is no argument " + shown(word) +
                     "; what is meant for the monitor stands behind --");
    }
    if (!given.insert(std::string(name)).second && !flag->repeatable) {
      return refused(std::string(name) + " is given more than once");
    }
    std::string_view value;
    if (flag->value == nullptr) {
      if (equals != std::string_view::npos) {
        return refused(std::string(name) + " takes no value");
      }
    } else if (equals != std::string_view::npos) {
      value = word.substr(equals + 1);
    } else {
      if (arguments.empty()) {
        return refused(std::string(name) + " needs a value: " + std::string(name) + " " + flag->value);
      }
      value = arguments.front();
      arguments = arguments.subspan(1);
      if (value.starts_with("--")) {
        return refused(std::string(name) + " needs a value, and " + shown(value) + " looks like a flag; " +
                       std::string(name) + "=" + flag->value + " takes any");
      }
    }
    if (name == "--resource-limit" && !limits.insert(std::string(value.substr(0, value.find('=')))).second) {
      return refused("--resource-limit " + shown(value) + ": this limit is given more than once");
    }
    if (const auto taken = flag->take(options, name, value); !taken) {
      return refused(taken.error().message());
    }
  }
  if (const auto fits = check_together(options, given); !fits) {
    return refused(fits.error().message());
  }
  return options;
}

}  // namespace mayfly::jail
