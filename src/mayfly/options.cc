#include "mayfly/options.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <string_view>
#include <utility>
#include <vector>

#include "base/exit_code.h"
#include "base/log.h"
#include "base/text.h"
#include "mayfly/device_options.h"
#include "mayfly/program_text.h"
#include "mayfly/suggestion.h"
#include "mayfly/version.h"
#include "snapshot/describe.h"
#include "vmm/config.h"

namespace mayfly {
namespace {

constexpr const char* kDescription =
    "Runs one microVM: a Linux kernel on KVM, with the least machine around it.\n"
    "Without a subcommand it takes the flags of the Firecracker API dialect.\n";

constexpr const char* kFooter =
    "\n"
    "Examples:\n"
    "  mayfly run --kernel vmlinux --initrd initramfs.cpio --cpus 2 --memory 512M\n"
    "  mayfly restore vm.state vm.mem\n"
    "  mayfly --api-sock /run/user/1000/vm.sock\n"
    "  mayfly --no-api --config-file vm.json\n"
    "  mayfly doctor\n"
    "\n"
    "The guest's serial console is standard input and output; the log goes to standard error.\n"
    "On a terminal, Ctrl-A x ends the microVM.\n"
    "\n"
    "Exit status:\n"
    "  0    the guest powered off or reset itself, also after a kernel panic that panic=1 turned into a\n"
    "       reset, or the microVM was stopped (SIGTERM, SIGINT, Ctrl-A x)\n"
    "  1    the microVM failed: a triple fault, a vCPU that KVM cannot run any further, or an error of the\n"
    "       host, which may be unable to run microVMs at all; a subcommand for microVMs that run (stop,\n"
    "       snapshot, ...) or for files (merge) did not do what was asked\n"
    "  152  the microVM cannot be what was asked for: its configuration file, kernel, initrd, command line,\n"
    "       memory (not enough huge pages: 1), disks, network interfaces, the snapshot of 'mayfly restore'\n"
    "       and its working set, or an output file that the configuration file names\n"
    "  153  the arguments cannot be used, or another file that they name: an output file, metadata,\n"
    "       filters, the snapshot of 'mayfly template' or of --describe-snapshot\n"
    "  148, 149, 150, 154, 156, 157\n"
    "       ended by SIGSYS, SIGBUS, SIGSEGV, SIGXCPU, SIGHUP, SIGILL\n"
    "  151  never: a write beyond the process's file size limit fails instead\n";

constexpr const char* kRunFooter =
    "\n"
    "Without --kernel it boots $MAYFLY_KERNEL, or the first that is there of\n"
    "$XDG_DATA_HOME/mayfly/kernel (~/.local/share/mayfly/kernel) and /usr/share/mayfly/kernel.\n"
    "\n"
    "The guest's serial console is this terminal: Ctrl-A x ends the microVM, Ctrl-A Ctrl-A sends one "
    "Ctrl-A,\n"
    "every other key goes to the guest. The log goes to standard error. 'mayfly --help' lists exit "
    "statuses.\n"
    "\n"
    "--metadata, --mmds-size-limit, --boot-timer and --config-file go without 'run'.\n";

constexpr const char* kRestoreFooter =
    "\n"
    "STATE and MEMORY are the files of a snapshot ('mayfly snapshot', PUT /snapshot/create) whose memory is\n"
    "whole: 'mayfly merge' makes that of diffs. The guest goes on where it was saved, with the disks and "
    "taps "
    "of\n"
    "then unless others are named, and its serial console on this terminal, as of 'mayfly run'.\n"
    "\n"
    "  mayfly restore vm.state vm.mem --disk disk1=copy.img --tap net1=tap7\n"
    "\n"
    "Exit status: 152 the snapshot, its working set, a disk or a tap cannot be used; else as of 'mayfly run' "
    "('mayfly "
    "--help').\n";

constexpr const char* kDoctorFooter =
    "\n"
    "Each line is good, limited (microVMs run, without something) or BAD (they do not run), with what to do\n"
    "about it. Exit status: 0 if this host can run microVMs, else 1.\n";

constexpr const char* kTemplateFooter =
    "\n"
    "It reads the snapshot once, keeps a pool of processes with a VM made ahead, and answers POST /clone on "
    "its\n"
    "socket: each clone is a process and a microVM of its own, which shares the snapshot's memory with the\n"
    "others until it writes to it. 'mayfly clone' asks for some; 'mayfly ps' lists them. SIGTERM and SIGINT "
    "end\n"
    "the template; its clones live on. docs/templates.md has the rest.\n"
    "\n"
    "Exit status: 0 it was asked to end, 1 the host cannot, 153 the arguments or the snapshot cannot be "
    "used.\n";

constexpr const char* kCloneFooter =
    "\n"
    "TEMPLATE is the --name of a template of this user; where several have that name, the number of its\n"
    "process or the path of its socket, with a '/' in it ('mayfly ps'). A line for each clone: its process,\n"
    "its id and its control API's socket, or '-'. Either all of them are born or none is.\n"
    "\n"
    "A disk that the guest writes to, and a tap, is one microVM's: give each clone its own. In paths and "
    "taps\n"
    "{id} stands for the clone's id and {n} for its number; a MAC address for several ends in {n}.\n"
    "\n"
    "  mayfly clone web -n 3 --disk 'disk1=saved.img:overlay={id}.overlay' --tap 'net1=tap{n}'\n"
    "\n"
    "Exit status: 0 they run, 1 they do not, 153 the arguments cannot be used.\n";

constexpr const char* kPsFooter =
    "\n"
    "NAME is the --id, of a template its --name, PID the process, SOCKET the control API's (--api-sock): "
    "found by looking at the\n"
    "processes of this user, as there is no registry. STATE, VCPUS and MEMORY are asked at the socket;\n"
    "VCPUS and MEMORY of a 'mayfly run' without one are from its command line.\n"
    "\n"
    "  Not started  waits for calls of the control API, InstanceStart above all\n"
    "  Running      the guest runs\n"
    "  Paused       the guest stands still ('mayfly resume NAME')\n"
    "  Template     no microVM: it makes clones of a snapshot ('mayfly clone NAME')\n"
    "  ?            there is a socket, and no answer within a second: the monitor hangs or has just begun "
    "or\n"
    "               ended, or the socket's file is gone; --json says why\n"
    "  -            not known, as there is no socket to ask at\n"
    "\n"
    "Exit status: 0, also where there are none; 1 if they could not be listed.\n";

constexpr const char* kNameFooter =
    "\n"
    "NAME is the --id of a microVM of this user, or the number of its process where several share the id:\n"
    "'mayfly ps' lists both. It needs the control API: a microVM started with --api-sock.\n"
    "\n"
    "Exit status: 0 done, 1 failed, 153 the arguments cannot be used.\n";

constexpr const char* kSnapshotFooter =
    "\n"
    "Saves the microVM to two files: what it is and does to STATE, its memory to MEMORY. Each takes the "
    "place\n"
    "of a former file whole, or not at all. A microVM that runs is paused meanwhile, or with --live only "
    "for\n"
    "the last pages. Disks are not saved: copy their images while it is paused. To go on from there:\n"
    "\n"
    "  mayfly restore STATE MEMORY\n"
    "\n"
    "or PUT /snapshot/load; to have many copies, 'mayfly template'. What --diff saves, 'mayfly merge' makes\n"
    "whole first.\n"
    "\n"
    "NAME is the --id of a microVM of this user, or the number of its process where several share the id:\n"
    "'mayfly ps' lists both. It needs the control API: a microVM started with --api-sock. For one in a jail\n"
    "the paths are those of its root directory.\n"
    "\n"
    "Exit status: 0 done, 1 failed, 153 the arguments cannot be used.\n";

constexpr const char* kWorkingSetFooter =
    "\n"
    "Writes down which pages of its memory a guest has touched since 'mayfly restore --record-working-set',\n"
    "once: the recording ends. For copies whose memory file is not in the page cache:\n"
    "\n"
    "  mayfly restore vm.state vm.mem --id first --api-sock first.sock --record-working-set\n"
    "  mayfly working-set first vm.set    # in another terminal, when it has done its work\n"
    "  mayfly restore vm.state vm.mem --working-set vm.set\n"
    "\n"
    "NAME is the --id of a microVM of this user, or the number of its process where several share the id:\n"
    "'mayfly ps' lists both. For one in a jail the path is that of its root directory.\n"
    "\n"
    "Exit status: 0 done, 1 failed, 153 the arguments cannot be used.\n";

constexpr const char* kMergeFooter =
    "\n"
    "A snapshot of type Diff has only what has changed since the one before. To load it, its memory is "
    "merged:\n"
    "\n"
    "  mayfly merge full.mem monday.mem tuesday.mem --output now.mem\n"
    "\n"
    "and now.mem goes with the state file of tuesday's. Without --output the result takes the place of "
    "MEMORY,\n"
    "whole or not at all; it takes that of no DIFF. MicroVMs that run from it keep what they have. A file\n"
    "that is no diff is refused, and a diff that has lost its holes: copy it by what keeps them (cp, tar "
    "-S).\n"
    "\n"
    "Exit status: 0 done, 1 failed, 153 the arguments cannot be used.\n";

constexpr const char* kStopFooter =
    "\n"
    "Sends Ctrl-Alt-Del to the guest, which then shuts down if it listens to that, and waits. What does not\n"
    "end in time, or cannot be asked (no control API, not started, paused), is ended by SIGTERM, which is\n"
    "said: like pulling the plug of a machine. A template is ended by SIGTERM at once; its clones live on.\n"
    "\n"
    "NAME is the --id of a microVM of this user, or the number of its process where several share the id:\n"
    "'mayfly ps' lists both.\n"
    "\n"
    "Exit status: 0 it has ended, 1 it has not, 153 the arguments cannot be used.\n";

constexpr const char* kCompletionFooter =
    "\n"
    "In this shell (zsh: after compinit):\n"
    "  source <(mayfly completion bash)\n"
    "  source <(mayfly completion zsh)\n"
    "  mayfly completion fish | source\n"
    "\n"
    "In every one to come:\n"
    "  mkdir -p ~/.local/share/bash-completion/completions\n"
    "  mayfly completion bash > ~/.local/share/bash-completion/completions/mayfly\n"
    "  mayfly completion zsh > \"${fpath[1]}/_mayfly\"\n"
    "  mayfly completion fish > ~/.config/fish/completions/mayfly.fish\n";

// The subcommands for microVMs that run already.
struct ShellCommand {
  const char* name;
  Subcommand subcommand;
  const char* summary;
  const char* footer;
};
constexpr std::array kShellCommands = {
    ShellCommand{"ps", Subcommand::kPs, "List the microVMs of this user: those that run, wait or are paused",
                 kPsFooter},
    ShellCommand{"pause", Subcommand::kPause, "Pause a running microVM", kNameFooter},
    ShellCommand{"resume", Subcommand::kResume, "Let a paused microVM run on", kNameFooter},
    ShellCommand{"stop", Subcommand::kStop, "Shut a microVM down, or end it", kStopFooter},
    ShellCommand{"metrics", Subcommand::kMetrics, "Print a microVM's metrics, in Prometheus' text format",
                 kNameFooter},
    ShellCommand{"config", Subcommand::kConfig,
                 "Print a microVM's configuration, as --config-file takes it (JSON)", kNameFooter},
    ShellCommand{"snapshot", Subcommand::kSnapshot, "Save a microVM to two files, to go on from later",
                 kSnapshotFooter},
    ShellCommand{"working-set", Subcommand::kWorkingSet,
                 "Write down which memory a restored microVM has touched", kWorkingSetFooter},
    ShellCommand{"merge", Subcommand::kMerge,
                 "Merge the memory of Diff snapshots into what they are diffs to", kMergeFooter},
    ShellCommand{"completion", Subcommand::kCompletion, "Print the completion script for a shell",
                 kCompletionFooter},
};

// To make all options would take CLI11 longer than the whole rest of the start up to KVM, so only those are
// made that the arguments name; all where help is asked for. What is named more often than it is meant costs
// nothing but that time.
class Named {
 public:
  // Borrows the arguments.
  explicit Named(const std::vector<std::string>& arguments)
      : arguments_(arguments), all_(any([](std::string_view word) {
          return word.starts_with("-h") || word.starts_with("--help");
        })) {}

  // A flag, also as --flag=value, or a subcommand.
  bool operator()(std::string_view name) const {
    return all_ || any([name](std::string_view word) { return word.substr(0, word.find('=')) == name; });
  }

 private:
  template <typename Test>
  bool any(Test test) const {
    return std::any_of(arguments_.begin(), arguments_.end(), test);
  }

  const std::vector<std::string>& arguments_;
  const bool all_;
};

constexpr const char* kRootDrive = "rootfs";  // its id

constexpr std::uint64_t kMib = std::uint64_t{1} << 20;

// Of `template` and `clone`.
constexpr std::uint32_t kMaxPool = 1024;
constexpr std::uint32_t kMaxClones = 1024;

// "" or what is wrong with it, as CLI11's validators say it.
std::string check_id(const std::string& text) {
  return is_instance_id(text) ? "" : "\"" + text + "\" must be 1 to 64 letters, digits and '-'";
}

std::string check_byte_count(const std::string& text) {
  const auto size = parse_integer<std::uint32_t>(text);
  return size && *size > 0 ? "" : "\"" + text + "\" must be a number of bytes above 0";
}

std::string check_cpus(const std::string& text) {
  const auto count = parse_integer<std::uint32_t>(text);
  return count && *count >= 1 && *count <= kMaxVcpus
             ? ""
             : "\"" + text + "\" must be a number from 1 to " + std::to_string(kMaxVcpus);
}

std::optional<BootProtocolChoice> parse_protocol(std::string_view text) {
  if (text == "auto") {
    return BootProtocolChoice::kAuto;
  }
  if (text == "pvh") {
    return BootProtocolChoice::kPvh;
  }
  return text == "linux64" ? std::optional(BootProtocolChoice::kLinux64) : std::nullopt;
}

std::string check_protocol(const std::string& text) {
  return parse_protocol(text) ? "" : "\"" + text + "\" must be auto, pvh or linux64";
}

std::string check_level(const std::string& text) {
  const auto level = parse_log_level(text);
  return level ? "" : level.error().message();
}

std::string check_memory_size(const std::string& text) {
  const auto size = parse_memory_size(text, "size");
  if (!size) {
    return size.error().message();
  }
  return *size % kMib == 0 && *size > 0 && *size / kMib <= kMaxMemoryMib
             ? ""
             : "\"" + text + "\" must be at least 1M and at most 4T, in whole MiB";
}

void add_log_options(CLI::App& app, const Named& named, LogOptions& log, const char* default_level) {
  constexpr const char* kGroup = "Log";
  if (named("--log-path")) {
    app.add_option("--log-path", log.path, "Write the log to this file or FIFO (default: standard error)")
        ->type_name("FILE")
        ->group(kGroup);
  }
  if (named("--level")) {
    app.add_option("--level", log.level, default_level)
        ->type_name("LEVEL")
        ->group(kGroup)
        ->check(check_level);
  }
  if (named("--module")) {
    app.add_option("--module", log.module,
                   "Log only what comes from this part of the source, such as devices/serial")
        ->type_name("PREFIX")
        ->group(kGroup);
  }
  if (named("--show-level")) {
    app.add_flag("--show-level", log.show_level, "Put the level into every line")->group(kGroup);
  }
  if (named("--show-log-origin")) {
    app.add_flag("--show-log-origin", log.show_origin, "Put source file and line into every line")
        ->group(kGroup);
  }
}

void add_seccomp_options(CLI::App& app, const Named& named, Options& options) {
  constexpr const char* kGroup = "System call filters";
  if (named("--no-seccomp")) {
    app.add_flag("--no-seccomp", options.no_seccomp,
                 "Run without system call filters: whoever breaks out of the guest may make any call")
        ->group(kGroup);
  }
  if (named("--seccomp-filter")) {
    app.add_option("--seccomp-filter", options.seccomp_filter,
                   "Use the filters in this file, which mayfly-seccomp has compiled, not the built-in ones")
        ->type_name("FILE")
        ->group(kGroup);
  }
}

void add_common_options(CLI::App& app, const Named& named, Options& options, const char* level) {
  if (named("--id")) {
    app.add_option("--id", options.id,
                   "Name of the microVM: letters, digits and '-', 1 to 64 (default: anonymous-instance)")
        ->type_name("ID")
        ->check(check_id);
  }
  if (named("--metrics-path")) {
    app.add_option("--metrics-path", options.metrics_path,
                   "Write metrics to this file or FIFO, a JSON object a line")
        ->type_name("FILE");
  }
  if (named("--boot-trace")) {
    app.add_option(
           "--boot-trace", options.boot_trace,
           "Write a timeline of the start to this file, to be opened in Perfetto (Chrome trace format)")
        ->type_name("FILE");
  }
  add_seccomp_options(app, named, options);
  add_log_options(app, named, options.log, level);
}

void add_api_options(CLI::App& app, const Named& named, Options& options) {
  if (named("--api-sock")) {
    app.add_option("--api-sock", options.api_socket,
                   "Serve the control API on this UNIX socket, which must not exist yet")
        ->type_name("PATH");
  }
  if (named("--http-api-max-payload-size")) {
    app.add_option_function<std::string>(
           "--http-api-max-payload-size",
           [&options](const std::string& text) {
             options.max_body_bytes = parse_integer<std::uint32_t>(text).value_or(0);
           },
           "The most bytes that a request's body may have (default: 51200)")
        ->type_name("N")
        ->check(check_byte_count);
  }
}

void add_metadata_options(CLI::App& app, const Named& named, Options& options) {
  if (named("--metadata")) {
    app.add_option("--metadata", options.metadata, "What the metadata service tells at first (JSON)")
        ->type_name("FILE");
  }
  if (named("--mmds-size-limit")) {
    app.add_option_function<std::string>(
           "--mmds-size-limit",
           [&options](const std::string& text) {
             options.mmds_size_limit = parse_integer<std::uint32_t>(text);
           },
           "The most bytes of metadata (default: that of --http-api-max-payload-size)")
        ->type_name("N")
        ->check(check_byte_count);
  }
}

std::string check_drive(const std::string& text) {
  const auto drive = parse_drive_option(text);
  return drive ? "" : drive.error().message();
}

std::string check_network(const std::string& text) {
  const auto network = parse_network_option(text);
  return network ? "" : network.error().message();
}

// Of an address that is none, or of several interfaces or none.
std::string check_address(const std::string& text, const std::optional<MacAddress>& address) {
  if (!address) {
    return "\"" + text + "\" is no MAC address, such as 06:00:ac:10:00:02";
  }
  return address->is_multicast() || address->is_zero()
             ? "\"" + text + "\" is not the address of a single interface"
             : "";
}
std::string check_mac(const std::string& text) {
  return check_address(text, MacAddress::parse(text));
}

void add_device_options(CLI::App* run, const Named& named, RunOptions& values,
                        std::vector<std::string>& macs) {
  constexpr const char* kGroup = "Devices";
  constexpr const char* kDrive = "IMAGE[:ro][:overlay[=FILE]]";
  const auto add = [&values](const std::string& text, std::string id) {
    if (auto drive = parse_drive_option(text)) {
      drive->id = std::move(id);
      drive->is_root = drive->id == kRootDrive;
      values.drives.push_back(std::move(*drive));
    }
  };
  if (named("--rootfs")) {
    run->add_option_function<std::string>(
           "--rootfs", [add](const std::string& text) { add(text, kRootDrive); },
           "Disk image whose file system is the guest's root (/dev/vda; in the API drive rootfs): raw, or a "
           "block device. With ro it is only read; with overlay, what the guest writes goes to FILE, or to "
           "memory, and not to it")
        ->type_name(kDrive)
        ->group(kGroup)
        ->check(check_drive);
  }
  if (named("--disk")) {
    run->add_option_function<std::vector<std::string>>(
           "--disk",
           [add](const std::vector<std::string>& texts) {
             for (std::size_t index = 0; index < texts.size(); ++index) {
               add(texts[index], "disk" + std::to_string(index + 1));
             }
           },
           "A further disk, likewise (/dev/vdb, ...; in the API drive disk1, ...); may be given several "
           "times")
        ->type_name(kDrive)
        ->group(kGroup)
        ->take_all()
        ->allow_extra_args(false)
        ->check(check_drive);
  }
  if (named("--net")) {
    run->add_option_function<std::vector<std::string>>(
           "--net",
           [&values](const std::vector<std::string>& texts) {
             for (const std::string& text : texts) {
               if (auto network = parse_network_option(text)) {
                 network->id = "net" + std::to_string(values.networks.size() + 1);
                 values.networks.push_back(std::move(*network));
               }
             }
           },
           "Network interface (eth0, ...; in the API interface net1, ...): behind a tap of this host that is "
           "there, or through passt, which needs no rights: user,forward=8080:80 makes port 80 of the guest "
           "port 8080 here (" +
               std::string(kPortForwardForm) +
               "). Also mac=MAC, mtu=N, queues=N; "
               "with user host-loopback. May be given several times")
        ->type_name("tap=NAME|user[,...]")
        ->group(kGroup)
        ->take_all()
        ->allow_extra_args(false)
        ->check(check_network);
  }
  if (named("--mac")) {
    run->add_option("--mac", macs, "MAC address of the first --net, the second, ... (default: made up)")
        ->type_name("MAC")
        ->group(kGroup)
        ->take_all()
        ->allow_extra_args(false)
        ->check(check_mac);
  }
}

void add_run_options(CLI::App* run, const Named& named, Options& options, std::vector<std::string>& macs) {
  run->footer(kRunFooter);
  RunOptions& values = options.run;
  if (named("--kernel")) {
    run->add_option("--kernel", values.kernel, "Kernel image: vmlinux (ELF) or bzImage (default: see below)")
        ->type_name("FILE");
  }
  if (named("--initrd")) {
    run->add_option("--initrd", values.initrd, "Initial RAM disk")->type_name("FILE");
  }
  if (named("--cpus")) {
    run->add_option_function<std::string>(
           "--cpus",
           [&values](const std::string& text) {
             values.cpus = parse_integer<std::uint32_t>(text).value_or(values.cpus);
           },
           "Number of vCPUs, 1 to 32 (default: 1)")
        ->type_name("N")
        ->check(check_cpus);
  }
  if (named("--memory")) {
    run->add_option_function<std::string>(
           "--memory",
           [&values](const std::string& text) {
             values.memory_mib = parse_memory_size(text, "--memory").value_or(0) / kMib;
           },
           "Guest memory: a number of MiB, or with a suffix K, M, G or T (default: 128M)")
        ->type_name("SIZE")
        ->check(check_memory_size);
  }
  if (named("--cmdline")) {
    run->add_option(
           "--cmdline", values.cmdline,
           "Kernel command line, at most 2047 characters (default: \"console=ttyS0 reboot=k panic=1\")")
        ->type_name("TEXT");
  }
  if (named("--huge-pages")) {
    run->add_flag("--huge-pages", values.huge_pages, "Back guest memory with reserved 2 MiB pages");
  }
  if (named("--track-dirty-pages")) {
    run->add_flag("--track-dirty-pages", values.track_dirty_pages,
                  "Log which memory the guest writes, for snapshots of type Diff and live ones");
  }
  if (named("--boot-protocol")) {
    run->add_option_function<std::string>(
           "--boot-protocol",
           [&values](const std::string& text) {
             values.protocol = parse_protocol(text).value_or(BootProtocolChoice::kAuto);
           },
           "How to enter the kernel: auto (PVH where the image offers it), pvh or linux64 (default: auto)")
        ->type_name("auto|pvh|linux64")
        ->check(check_protocol);
  }
  add_device_options(run, named, values, macs);
  add_api_options(*run, named, options);
  add_common_options(*run, named, options, "Error, Warn, Info, Debug, Trace or Off (default: Warn)");
}

// "ID=VALUE", without an ID or a VALUE that is empty; nothing where it is none.
std::optional<std::pair<std::string, std::string>> split_override(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    return std::nullopt;
  }
  return std::pair(text.substr(0, equals), text.substr(equals + 1));
}

Result<DriveOverride> parse_drive_override(const std::string& text) {
  const auto parts = split_override(text);
  if (!parts) {
    return fail(ErrorCode::kInvalidArgument, "\"" + text + "\" must be ID=IMAGE[:overlay[=FILE]]");
  }
  MAYFLY_TRY_ASSIGN(const BlockDeviceConfig drive, parse_drive_option(parts->second));
  if (drive.read_only) {
    return fail(ErrorCode::kInvalidArgument,
                "\"" + text + "\": whether a disk is read-only is as the guest knows it, from the snapshot");
  }
  return DriveOverride{.id = parts->first, .path = drive.path, .overlay = drive.overlay};
}

// What a copy may have of its own. Whether an address may end in "{n}": of copies that have a number.
void add_override_options(CLI::App* made, const Named& named, LoadRequest& load, bool numbered) {
  if (named("--disk")) {
    made->add_option_function<std::vector<std::string>>(
            "--disk",
            [&load](const std::vector<std::string>& texts) {
              for (const std::string& text : texts) {
                if (auto drive = parse_drive_override(text)) {
                  load.drives.push_back(std::move(*drive));
                }
              }
            },
            "Another image of the same size for the drive with that id (rootfs, disk1, ...), and another "
            "overlay; may be given several times")
        ->type_name("ID=IMAGE[:overlay[=FILE]]")
        ->take_all()
        ->allow_extra_args(false)
        ->check([](const std::string& text) {
          const auto drive = parse_drive_override(text);
          return drive ? std::string() : drive.error().message();
        });
  }
  if (named("--tap")) {
    made->add_option_function<std::vector<std::string>>(
            "--tap",
            [&load](const std::vector<std::string>& texts) {
              for (const std::string& text : texts) {
                if (const auto parts = split_override(text)) {
                  load.networks.push_back({.id = parts->first, .tap = parts->second});
                }
              }
            },
            "Another tap for the network interface with that id (net1, ...); may be given several times")
        ->type_name("ID=TAP")
        ->take_all()
        ->allow_extra_args(false)
        ->check([](const std::string& text) {
          return split_override(text) ? "" : "\"" + text + "\" must be ID=TAP, such as net1=tap7";
        });
  }
  if (named("--mac")) {
    made->add_option_function<std::vector<std::string>>(
            "--mac",
            [&load](const std::vector<std::string>& texts) {
              for (const std::string& text : texts) {
                if (const auto parts = split_override(text)) {
                  load.networks.push_back({.id = parts->first, .mac = parts->second});
                }
              }
            },
            "Another MAC address for the network interface with that id, which the guest has to take "
            "(docs/cloning.md); may be given several times")
        ->type_name("ID=MAC")
        ->take_all()
        ->allow_extra_args(false)
        ->check([numbered](const std::string& text) {
          const auto parts = split_override(text);
          if (!parts) {
            return "\"" + text + "\" must be ID=MAC, such as net1=06:00:ac:10:00:02";
          }
          const auto address = MacAddress::parse(parts->second);
          return check_address(parts->second,
                               address || !numbered ? address : MacAddress::parse_numbered(parts->second, 0));
        });
  }
}

void add_restore_options(CLI::App* made, const Named& named, Options& options) {
  made->footer(kRestoreFooter);
  LoadRequest& load = options.load;
  load.resume = true;
  made->add_option("STATE", load.state_path, "The snapshot's state file")->type_name("FILE")->required();
  made->add_option("MEMORY", load.memory_path, "The snapshot's memory file")->type_name("FILE")->required();
  add_override_options(made, named, load, false);
  if (named("--paused")) {
    made->add_flag_callback(
        "--paused", [&load] { load.resume = false; }, "Leave it paused ('mayfly resume'); needs --api-sock");
  }
  if (named("--clock-realtime")) {
    made->add_flag("--clock-realtime", load.advance_clock,
                   "Move the guest's clock on by the time since it was saved");
  }
  if (named("--track-dirty-pages")) {
    made->add_flag("--track-dirty-pages", load.track_dirty_pages,
                   "Note which memory is written: for --live snapshots and fast --diff ones");
  }
  if (named("--working-set")) {
    made->add_option("--working-set", load.working_set_path,
                     "Read ahead the memory that this file says an earlier run has touched")
        ->type_name("FILE");
  }
  if (named("--transparent-huge-pages")) {
    made->add_flag_callback(
        "--transparent-huge-pages", [&load] { load.huge_pages = HugePages::kTransparent; },
        "Read what --working-set has, or all, into huge pages of its own");
  }
  if (named("--record-working-set")) {
    made->add_flag("--record-working-set", load.record_working_set,
                   "Note which memory it touches, for 'mayfly working-set'; needs --api-sock");
  }
  add_metadata_options(*made, named, options);
  add_api_options(*made, named, options);
  add_common_options(*made, named, options, "Error, Warn, Info, Debug, Trace or Off (default: Warn)");
}

// A day: what is longer is a mistake.
constexpr std::uint32_t kMaxTimeout = 86'400;

std::string check_timeout(const std::string& text) {
  const auto seconds = parse_integer<std::uint32_t>(text);
  return seconds && *seconds <= kMaxTimeout
             ? ""
             : "\"" + text + "\" must be a number of seconds, at most " + std::to_string(kMaxTimeout);
}

std::string check_shell(const std::string& text) {
  return text == "bash" || text == "zsh" || text == "fish" ? ""
                                                           : "\"" + text + "\" must be bash, zsh or fish";
}

void add_shell_options(CLI::App* made, const Named& named, Subcommand subcommand, ShellOptions& shell) {
  switch (subcommand) {
    case Subcommand::kPs:
      if (named("--json")) {
        made->add_flag("--json", shell.json, "A JSON array with all that is known, for scripts");
      }
      if (named("--templates")) {
        made->add_flag("--templates", shell.templates, "Templates only");
      }
      if (named("--quiet")) {
        made->add_flag("--quiet", shell.quiet,
                       "Only the names, one a line; the process's number where several share a name");
      }
      return;
    case Subcommand::kCompletion:
      made->add_option("SHELL", shell.shell, "Which shell: bash, zsh or fish")
          ->type_name("bash|zsh|fish")
          ->required()
          ->check(check_shell);
      return;
    case Subcommand::kStop:
      if (named("--timeout")) {
        made->add_option_function<std::string>(
                "--timeout",
                [&shell](const std::string& text) {
                  shell.timeout_s = parse_integer<std::uint32_t>(text).value_or(shell.timeout_s);
                },
                "How long the guest has to shut down, in seconds (default: 10)")
            ->type_name("N")
            ->check(check_timeout);
      }
      if (named("--now")) {
        made->add_flag("--now", shell.now, "Do not ask the guest: SIGTERM at once");
      }
      break;
    case Subcommand::kMerge:
      made->add_option("MEMORY", shell.memory_path, "A whole memory file")->type_name("FILE")->required();
      made->add_option("DIFF", shell.diff_paths,
                       "Memory of Diff snapshots, in the order in which they were taken")
          ->type_name("FILE")
          ->required();
      if (named("--output")) {
        made->add_option("--output", shell.output_path, "Where the result goes, in place of MEMORY")
            ->type_name("FILE");
      }
      return;
    default:
      break;
  }
  made->add_option("NAME", shell.name, "Which microVM: its id, or the number of its process")
      ->type_name("MICROVM")
      ->required();
  if (subcommand == Subcommand::kWorkingSet) {
    made->add_option("FILE", shell.working_set_path, "Where it goes")->type_name("FILE")->required();
  }
  if (subcommand == Subcommand::kSnapshot) {
    made->add_option("STATE", shell.state_path, "The state file")->type_name("FILE")->required();
    made->add_option("MEMORY", shell.memory_path, "The memory file")->type_name("FILE")->required();
    if (named("--diff")) {
      made->add_flag("--diff", shell.diff,
                     "Of its memory only what has changed since the last one; see 'mayfly merge'");
    }
    if (named("--live")) {
      made->add_flag("--live", shell.live, "Let it run while most of its memory is written");
    }
  }
}

// A number from 1 to `most`, into `target`.
void add_number(CLI::App* made, const char* name, std::uint32_t most, std::uint32_t& target,
                const char* help) {
  made->add_option_function<std::string>(
          name,
          [&target](const std::string& text) {
            target = parse_integer<std::uint32_t>(text).value_or(target);
          },
          help)
      ->type_name("N")
      ->check([most](const std::string& text) {
        const auto number = parse_integer<std::uint32_t>(text);
        return number && *number >= 1 && *number <= most
                   ? ""
                   : "\"" + text + "\" must be a number from 1 to " + std::to_string(most);
      });
}

void add_template_options(CLI::App* made, const Named& named, Options& options) {
  made->footer(kTemplateFooter);
  made->add_option("STATE", options.clones.state_path, "The snapshot's state file")
      ->type_name("FILE")
      ->required();
  made->add_option("MEMORY", options.clones.memory_path, "The snapshot's memory file")
      ->type_name("FILE")
      ->required();
  if (named("--name")) {
    made->add_option("--name", options.clones.name,
                     "What it is called, and its clones where nobody says otherwise: NAME-1, NAME-2, ... "
                     "(default: template)")
        ->type_name("NAME")
        ->check(check_id);
  }
  if (named("--pool")) {
    add_number(made, "--pool", kMaxPool, options.clones.pool,
               "How many clones to have ready, 1 to 1024 (default: 8)");
  }
  if (named("--no-clone-api")) {
    made->add_flag("--no-clone-api", options.clones.no_api,
                   "Clones without a control API each: cheaper, for very many");
  }
  add_api_options(*made, named, options);
  add_seccomp_options(*made, named, options);
  add_log_options(*made, named, options.log, "Error, Warn, Info, Debug, Trace or Off (default: Warn)");
}

void add_clone_options(CLI::App* made, const Named& named, Options& options) {
  made->footer(kCloneFooter);
  CloneOptions& clones = options.clones;
  made->add_option("TEMPLATE", clones.template_name,
                   "Which template: its name, its process's number, or its socket's path (with a '/')")
      ->type_name("TEMPLATE")
      ->required();
  if (named("--count") || named("-n")) {
    add_number(made, "-n,--count", kMaxClones, clones.count, "How many, 1 to 1024 (default: 1)");
  }
  if (named("--id-prefix")) {
    made->add_option("--id-prefix", clones.id_prefix,
                     "Their ids are ID-N, with a number of the template's (default: the template's name)")
        ->type_name("ID")
        ->check(check_id);
  }
  if (named("--serial")) {
    made->add_option("--serial", clones.serial_path,
                     "Append what the guest prints to this file (default: nowhere)")
        ->type_name("FILE");
  }
  add_override_options(made, named, options.load, true);
  if (named("--no-api")) {
    made->add_flag("--no-api", clones.no_api, "Without a control API each: they cost less");
  }
  if (named("--paused")) {
    made->add_flag("--paused", clones.paused, "Leave them paused");
  }
}

void add_time(CLI::App& app, const Named& named, const char* name, std::optional<std::uint64_t>& value,
              const char* help) {
  if (named(name)) {
    app.add_option_function<std::string>(
           name, [&value](const std::string& text) { value = parse_integer<std::uint64_t>(text); }, help)
        ->type_name("N")
        ->group("Start-up metrics")
        ->check([](const std::string& text) {
          return parse_integer<std::uint64_t>(text) ? ""
                                                    : "\"" + text + "\" must be a number of microseconds";
        });
  }
}

bool takes_value(const CLI::Option& option) {
  return option.get_items_expected_max() > 0;
}

// "--kernel needs a value: --kernel FILE"; of an argument without a flag "MEMORY must not be empty".
std::string needs_value(const CLI::Option& option) {
  const std::string name = option.get_name();
  return option.get_positional() ? name + " must not be empty"
                                 : name + " needs a value: " + name + " " + option.get_type_name();
}

// The error of CLI11 for a person: which argument, and what to do.
std::string in_our_words(const CLI::Error& error, const CLI::App& app) {
  std::string said = error.what();
  const auto kind = static_cast<CLI::ExitCodes>(error.get_exit_code());
  if (kind == CLI::ExitCodes::ExtrasError) {
    const auto extra = app.remaining(true);
    const auto chosen = app.get_subcommands();
    return extra.empty() ? said
                         : "there is no argument \"" + extra.front() + "\"" +
                               suggestion(extra.front(), chosen.empty() ? "" : chosen.front()->get_name(),
                                          describe_program());
  }
  if (kind == CLI::ExitCodes::ArgumentMismatch) {
    const std::string name = said.substr(0, said.find(':'));
    const CLI::Option* option = app.get_option_no_throw(name);
    for (const CLI::App* chosen : app.get_subcommands()) {
      option = option == nullptr ? chosen->get_option_no_throw(name) : option;
    }
    return option != nullptr && option->count() > 1 ? name + " is given more than once" : said;
  }
  if (kind == CLI::ExitCodes::ConversionError) {
    // "Could not convert: --huge-pages = x". Of our options only those without a value convert one.
    const std::string argument = said.substr(said.find("--") == std::string::npos ? 0 : said.find("--"));
    return argument.substr(0, argument.find(' ')) + " takes no value";
  }
  return said;
}

tl::unexpected<ParseStop> refused(const std::string& text, const std::string& program) {
  return tl::make_unexpected(
      ParseStop{static_cast<int>(ExitCode::kBadArguments), text, "Try '" + program + " --help'.\n"});
}

bool is_subcommand(const std::string& word) {
  return word == "run" || word == "restore" || word == "doctor" || word == "template" || word == "clone" ||
         std::ranges::any_of(kShellCommands,
                             [&word](const ShellCommand& command) { return word == command.name; });
}

// The program's arguments as CLI11 has them. Borrows what parsing fills.
struct Program {
  Program(const std::vector<std::string>& given, Options& options, std::vector<std::string>& macs);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() = default;

  // The subcommand that was parsed.
  Subcommand meant() const {
    const auto found =
        std::ranges::find_if(subcommands, [](const auto& entry) { return entry.first->parsed(); });
    return found == subcommands.end() ? Subcommand::kMonitor : found->second;
  }
  // The flag of that name, of whichever subcommand; null where there is none.
  const CLI::Option* find_flag(const std::string& name) const;

  CLI::App app{kDescription, "mayfly"};
  std::vector<std::pair<CLI::App*, Subcommand>> subcommands;
};

Program::Program(const std::vector<std::string>& given, Options& options, std::vector<std::string>& macs) {
  app.footer(kFooter);
  app.get_formatter()->column_width(32);
  const Named named(given);
  if (named("--version")) {
    app.set_version_flag("--version", version_text());
  }
  // Behind a leading subcommand only its own are meant.
  const bool subcommand_leads = !given.empty() && is_subcommand(given.front());
  const auto is_offered = [&](const char* name) {
    return subcommand_leads ? given.front() == name : named(name);
  };
  if (!subcommand_leads) {
    add_api_options(app, named, options);
    add_metadata_options(app, named, options);
    if (named("--config-file")) {
      app.add_option("--config-file", options.config_file,
                     "Configuration of the microVM (JSON); it starts at once")
          ->type_name("FILE");
    }
    if (named("--no-api")) {
      app.add_flag("--no-api", options.no_api, "Serve no control API; needs --config-file");
    }
    if (named("--boot-timer")) {
      app.add_flag("--boot-timer", options.boot_timer,
                   "Log how long the guest takes from its start until it writes the byte 123 to address "
                   "0xc0000000");
    }
    if (named("--snapshot-version")) {
      app.add_flag_callback(
          "--snapshot-version", [] { throw CLI::Success(snapshot_version_text(), 0); },
          "Print the version of the format in which snapshots are written");
    }
    if (named("--describe-snapshot")) {
      app.add_option("--describe-snapshot", options.describe_snapshot,
                     "Print what the state file of a snapshot holds, beginning with its format's version")
          ->type_name("FILE");
    }
    add_common_options(app, named, options, "Error, Warn, Info, Debug, Trace or Off (default: Info)");
    add_time(app, named, "--start-time-us", options.process_start.monotonic_us,
             "When the caller started this process (monotonic, us)");
    add_time(app, named, "--start-time-cpu-us", options.process_start.cpu_us,
             "CPU time of the process at that time (us)");
    add_time(app, named, "--parent-cpu-time-us", options.process_start.parent_cpu_us,
             "CPU time that the caller spent on it (us)");
  }
  if (is_offered("run")) {
    CLI::App* made = app.add_subcommand("run", "Boot a kernel, with its console on this terminal");
    add_run_options(made, named, options, macs);
    subcommands.emplace_back(made, Subcommand::kRun);
  }
  if (is_offered("restore")) {
    CLI::App* made =
        app.add_subcommand("restore", "Go on from a snapshot, with its console on this terminal");
    add_restore_options(made, named, options);
    subcommands.emplace_back(made, Subcommand::kRestore);
  }
  if (is_offered("doctor")) {
    CLI::App* made =
        app.add_subcommand("doctor", "Say what this host can do, and what to do about what it cannot");
    made->footer(kDoctorFooter);
    subcommands.emplace_back(made, Subcommand::kDoctor);
  }
  if (is_offered("template")) {
    CLI::App* made = app.add_subcommand("template", "Keep a snapshot ready to be cloned in a millisecond");
    add_template_options(made, named, options);
    subcommands.emplace_back(made, Subcommand::kTemplate);
  }
  if (is_offered("clone")) {
    CLI::App* made = app.add_subcommand("clone", "Start clones of a template's snapshot");
    add_clone_options(made, named, options);
    subcommands.emplace_back(made, Subcommand::kClone);
  }
  for (const ShellCommand& command : kShellCommands) {
    if (is_offered(command.name)) {
      CLI::App* made = app.add_subcommand(command.name, command.summary);
      made->footer(command.footer);
      add_shell_options(made, named, command.subcommand, options.shell);
      subcommands.emplace_back(made, command.subcommand);
    }
  }
  app.require_subcommand(0, 1);
}

const CLI::Option* Program::find_flag(const std::string& name) const {
  const CLI::Option* found = name.starts_with('-') ? app.get_option_no_throw(name) : nullptr;
  for (const auto& [made, subcommand] : subcommands) {
    found = found == nullptr && name.starts_with('-') ? made->get_option_no_throw(name) : found;
  }
  return found;
}

constexpr const char* kMayBeEmpty = "--cmdline";

// What is wrong where a flag has no value, or a flag stands in its place: CLI11 would take the next word,
// whatever it is. A value that does begin with "--" is given by --flag=value. Nothing where all have one.
std::optional<std::string> find_missing_value(const std::vector<std::string>& given, const Program& program) {
  for (std::size_t index = 0; index < given.size() && given[index] != "--"; ++index) {
    const std::string& word = given[index];
    const std::size_t equals = word.find('=');
    const CLI::Option* flag = program.find_flag(word.substr(0, equals));
    if (flag == nullptr || !takes_value(*flag)) {
      continue;
    }
    const bool may_be_empty = flag->get_name() == kMayBeEmpty;
    if (equals != std::string::npos) {
      if (equals + 1 == word.size() && !may_be_empty) {
        return needs_value(*flag);
      }
      continue;
    }
    if (++index == given.size()) {
      return needs_value(*flag);
    }
    const std::string& value = given[index];
    if (value.empty() && !may_be_empty) {
      return needs_value(*flag);
    }
    const bool is_flag = program.find_flag(value.substr(0, value.find('='))) != nullptr;
    if (is_flag || (value.starts_with("--") && !may_be_empty)) {
      return needs_value(*flag) + ", and \"" + value + "\" comes next";
    }
  }
  return std::nullopt;
}

// Of those that no flag is in front of.
std::optional<std::string> find_empty_argument(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_positional() && std::ranges::count(option->results(), "") != 0) {
      return needs_value(*option);
    }
  }
  return std::nullopt;
}

CommandText describe(const CLI::App& app, const std::string& summary) {
  CommandText text{
      .name = app.get_name(), .summary = summary, .options = {}, .arguments = {}, .footer = app.get_footer()};
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) {
      continue;
    }
    OptionText described{
        .name = option->get_positional() ? option->get_name() : "--" + option->get_lnames().front(),
        .value = takes_value(*option) ? option->get_type_name() : "",
        .help = option->get_description(),
        .group = option->get_group(),
        .repeatable = option->get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll ||
                      (option->get_positional() && option->get_items_expected_max() > 1),
        .short_name = option->get_snames().empty() ? "" : "-" + option->get_snames().front()};
    (option->get_positional() ? text.arguments : text.options).push_back(std::move(described));
  }
  return text;
}

}  // namespace

ProgramText describe_program() {
  Options options;
  std::vector<std::string> macs;
  // Where help is asked for, there is everything.
  const Program program({"--help"}, options, macs);
  ProgramText text{.program = describe(program.app, program.app.get_description()), .subcommands = {}};
  for (const auto& [app, subcommand] : program.subcommands) {
    text.subcommands.push_back(describe(*app, app->get_description()));
  }
  return text;
}

tl::expected<Options, ParseStop> parse_options(int argument_count, const char* const* arguments) {
  Options options;
  std::vector<std::string> macs;  // of the networks, from the first on
  std::vector<std::string> given(arguments, arguments + argument_count);
  Program program(given, options, macs);
  CLI::App& app = program.app;

  if (const auto missing = find_missing_value(given, program)) {
    return refused(*missing, is_subcommand(given.front()) ? "mayfly " + given.front() : "mayfly");
  }
  // CLI11 takes "--cmdline=" for an option without its value; an empty command line is one.
  if (const auto empty = std::find(given.begin(), given.end(), "--cmdline="); empty != given.end()) {
    *empty = "--cmdline";
    given.insert(std::next(empty), "");
  }
  // CLI11 takes the arguments last first.
  std::reverse(given.begin(), given.end());
  try {
    app.parse(std::move(given));
  } catch (const CLI::CallForHelp&) {
    const auto chosen = app.get_subcommands();
    return tl::make_unexpected(
        ParseStop{0, chosen.empty() ? app.help() : chosen.front()->help("mayfly"), ""});
  } catch (const CLI::Success& success) {
    return tl::make_unexpected(ParseStop{0, std::string(success.what()) + "\n", ""});
  } catch (const CLI::Error& error) {
    const auto chosen = app.get_subcommands();
    return refused(in_our_words(error, app),
                   chosen.empty() ? "mayfly" : "mayfly " + chosen.front()->get_name());
  }
  for (const CLI::App* chosen : app.get_subcommands()) {
    if (const auto empty = find_empty_argument(*chosen)) {
      return refused(*empty, "mayfly " + chosen->get_name());
    }
  }

  options.subcommand = program.meant();
  if (options.subcommand == Subcommand::kMonitor && options.describe_snapshot) {
    options.subcommand = Subcommand::kDescribeSnapshot;
    return options;
  }
  if (options.describe_snapshot) {
    return refused("--describe-snapshot does not go with a subcommand", "mayfly");
  }
  const bool is_monitor = options.subcommand == Subcommand::kMonitor;
  if (!is_monitor && (options.no_api || options.config_file)) {
    return refused("--no-api and --config-file do not go with a subcommand", "mayfly");
  }
  if (const auto repeated = find_repeated_override(options.load)) {
    using Kind = RepeatedOverride::Kind;
    return refused(std::string(repeated->kind == Kind::kDrive ? "--disk"
                               : repeated->kind == Kind::kTap ? "--tap"
                                                              : "--mac") +
                       " names " + repeated->id + " more than once",
                   options.subcommand == Subcommand::kClone ? "mayfly clone" : "mayfly restore");
  }
  const bool is_template = options.subcommand == Subcommand::kTemplate;
  const bool is_restore = options.subcommand == Subcommand::kRestore;
  if (!is_monitor && !is_restore && (options.metadata || options.mmds_size_limit)) {
    return refused("--metadata and --mmds-size-limit go with 'mayfly restore' or without a subcommand",
                   "mayfly");
  }
  if (!is_monitor && options.subcommand != Subcommand::kRun && !is_restore && !is_template &&
      options.api_socket) {
    return refused(
        "--api-sock goes with 'mayfly run', 'mayfly restore', 'mayfly template' or without a subcommand",
        "mayfly");
  }
  if (is_restore && !options.load.resume && !options.api_socket) {
    return refused("--paused needs --api-sock PATH: nobody could resume it", "mayfly restore");
  }
  if (options.load.record_working_set && !options.api_socket) {
    return refused("--record-working-set needs --api-sock PATH: nobody could have it written",
                   "mayfly restore");
  }
  if (options.load.record_working_set && options.load.working_set_path) {
    return refused("--record-working-set and --working-set contradict each other", "mayfly restore");
  }
  if (is_template && !options.api_socket) {
    return refused("--api-sock PATH is needed: where clones are asked for", "mayfly template");
  }
  if (is_template) {
    options.id = options.clones.name;
  }
  if (options.no_api && options.api_socket) {
    return refused("--no-api and --api-sock contradict each other", "mayfly");
  }
  if (options.no_api && !options.config_file) {
    return refused("--no-api needs --config-file FILE", "mayfly");
  }
  if (is_monitor && !options.no_api && !options.api_socket) {
    return refused(options.config_file
                       ? "--config-file needs --api-sock PATH to serve the control API, or --no-api"
                       : "nothing to run: say 'mayfly run', --api-sock PATH, or --no-api --config-file FILE",
                   "mayfly");
  }
  if (options.no_seccomp && options.seccomp_filter) {
    return refused("--no-seccomp and --seccomp-filter contradict each other", "mayfly");
  }
  if (options.shell.json && options.shell.quiet) {
    return refused("--json and --quiet contradict each other", "mayfly ps");
  }
  for (const NetworkOverride& change : options.load.networks) {
    if (options.clones.count > 1 && change.mac && MacAddress::parse(*change.mac)) {
      return refused("--mac " + change.id + "=" + *change.mac +
                         " is one clone's; for several (--count) it ends in \"{n}\", such as " + change.id +
                         "=06:00:ac:{n}",
                     "mayfly clone");
    }
  }
  if (options.clones.paused && options.clones.no_api) {
    return refused("--paused contradicts --no-api: nobody could resume it", "mayfly clone");
  }
  if (options.shell.live && options.shell.diff) {
    return refused("--live and --diff contradict each other: a live snapshot is Full", "mayfly snapshot");
  }
  if (macs.size() > options.run.networks.size()) {
    return refused("--mac " + macs.back() + " has no --net to go with", "mayfly run");
  }
  for (std::size_t index = 0; index < macs.size(); ++index) {
    options.run.networks[index].mac = MacAddress::parse(macs[index]);
  }
  return options;
}

}  // namespace mayfly
