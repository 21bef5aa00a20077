// The command line as plain data: what is asked for, each value checked by itself.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mayfly::jail {

enum class Action : std::uint8_t { kJail, kDryRun, kCleanup };

enum class CgroupVersion : std::uint8_t { k1 = 1, k2 = 2 };

// --cgroup cpu.shares=512
struct CgroupSetting {
  std::string
      file;  // "cpu.shares": letters, digits, '_', '-' and '.', with a controller before the first '.'
  std::string value;  // printable, not empty

  std::string controller() const { return file.substr(0, file.find('.')); }
};

struct Options {
  Action action = Action::kJail;
  std::string id;
  std::string exec_file;  // as it was given
  std::string exec_name;  // its last component: a folder's, a file's and a cgroup's name
  uid_t uid = 0;          // not used by kCleanup, as is all below but the cgroups' version and parent
  gid_t gid = 0;
  std::string chroot_base = "/srv/jailer";  // absolute, without "." and ".."
  std::optional<std::string> netns;
  std::vector<CgroupSetting> cgroups;
  CgroupVersion cgroup_version = CgroupVersion::k1;
  std::optional<std::string> parent_cgroup;  // relative, without "." and ".."
  std::optional<std::uint64_t> fsize;        // bytes
  std::uint64_t no_file = 2048;
  bool daemonize = false;
  bool new_pid_ns = false;
  bool core_scheduling = false;
  bool rootless = false;
  std::vector<std::string> monitor_arguments;  // those behind --

  // The parent of the jail's cgroups, relative to a hierarchy's root.
  const std::string& cgroup_parent() const { return parent_cgroup ? *parent_cgroup : exec_name; }
};

// Where there is nothing to do: text for standard output (help, version), or a refusal.
struct Stop {
  bool refused;
  std::string text;
};

// `arguments` without the program's name. A refusal names flag, value and rule.
tl::expected<Options, Stop> parse_options(std::span<const char* const> arguments);

// Every flag, for help and for the test that holds the manual page to it.
std::string help_text();

// A value of the caller's as a message shows it: quoted, and cut where it is long.
std::string shown(std::string_view value);

}  // namespace mayfly::jail
