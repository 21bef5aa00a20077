// The command line: flags and subcommands as plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "boot/boot.h"
#include "devices/virtio/block/block_config.h"
#include "devices/virtio/net/net_config.h"
#include "vmm/load_request.h"

namespace mayfly {

enum class Subcommand : std::uint8_t {
  kMonitor,  // no subcommand: the dialect's own flags
  kRun,
  kRestore,
  kDoctor,
  kTemplate,
  kClone,
  kPs,  // this one and those below: microVMs that run already
  kPause,
  kResume,
  kStop,
  kMetrics,
  kConfig,
  kSnapshot,
  kWorkingSet,
  kCompletion,
  kMerge,             // of snapshots' files
  kDescribeSnapshot,  // no subcommand, but --describe-snapshot
};

struct LogOptions {
  std::optional<std::string> path;
  std::optional<std::string> level;
  std::optional<std::string> module;
  bool show_level = false;
  bool show_origin = false;
};

struct RunOptions {
  std::optional<std::string> kernel;
  std::optional<std::string> initrd;
  std::optional<std::string> cmdline;
  std::uint32_t cpus = 1;
  std::uint64_t memory_mib = 128;
  bool huge_pages = false;
  bool track_dirty_pages = false;
  std::vector<BlockDeviceConfig>
      drives{};  // the root drive, where there is one, and the others in their order
  std::vector<NetDeviceConfig> networks{};
  BootProtocolChoice protocol = BootProtocolChoice::kAuto;
};

// Of the subcommands for microVMs that run already.
struct ShellOptions {
  std::string name;                          // which microVM: its id, or its process
  bool json = false;                         // ps
  bool quiet = false;                        // ps
  bool templates = false;                    // ps
  bool now = false;                          // stop
  std::uint32_t timeout_s = 10;              // stop
  std::string shell;                         // completion: bash, zsh or fish
  std::string state_path;                    // snapshot
  std::string memory_path;                   // snapshot, merge
  std::string working_set_path;              // working-set
  bool diff = false;                         // snapshot
  bool live = false;                         // snapshot
  std::vector<std::string> diff_paths{};     // merge
  std::optional<std::string> output_path{};  // merge
};

// Of `template` and `clone`.
struct CloneOptions {
  std::string state_path;
  std::string memory_path;
  std::string name = "template";
  std::uint32_t pool = 8;     // processes kept ready
  std::string template_name;  // clone: which one, by name or by its socket's path
  std::uint32_t count = 1;
  std::optional<std::string> id_prefix;
  bool no_api = false;
  bool paused = false;
  std::optional<std::string> serial_path;
};

struct Options {
  Subcommand subcommand = Subcommand::kMonitor;
  std::string id = "anonymous-instance";
  std::optional<std::string> config_file;
  std::optional<std::string> api_socket;       // absent: no control API
  std::size_t max_body_bytes = 51200;          // of a call of the control API
  std::optional<std::string> metadata;         // a file
  std::optional<std::size_t> mmds_size_limit;  // bytes; absent: max_body_bytes
  bool no_api = false;
  std::optional<std::string> describe_snapshot;  // a file
  std::optional<std::string> metrics_path;
  std::optional<std::string> boot_trace;
  bool boot_timer = false;
  bool no_seccomp = false;                    // no system call filters
  std::optional<std::string> seccomp_filter;  // a file with others than the built-in ones
  ProcessStart process_start;
  LogOptions log;
  RunOptions run;
  LoadRequest load;  // restore
  ShellOptions shell;
  CloneOptions clones;
};

// What parsing says where there is nothing to run: text for stdout (help, version; exit code 0), or an error
// for stderr (kBadArguments) and where to read on.
struct ParseStop {
  int exit_code;
  std::string text;
  std::string hint;  // whole lines
};

// `arguments` without the program's name.
tl::expected<Options, ParseStop> parse_options(int argument_count, const char* const* arguments);

}  // namespace mayfly
