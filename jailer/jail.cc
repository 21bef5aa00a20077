#include "jail.h"

#include <sched.h>
#include <sys/personality.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "base/file.h"
#include "devices.h"
#include "landlock.h"
#include "namespaces.h"
#include "privileges.h"
#include "terminal_filter.h"
#include "undo.h"

namespace mayfly::jail {
namespace {

constexpr std::size_t kMaxProcFile = std::size_t{16} << 20U;
constexpr std::size_t kMaxPath = 4095;  // PATH_MAX with its end: mount(2) takes no longer one
constexpr mode_t kMonitorUmask = 0077;

// What is made before the jail is entered, and needed then.
struct Prepared {
  Tree tree;
  std::vector<UniqueFd> cgroup_members;  // one for each of the plan
  std::optional<UniqueFd> null;          // --daemonize
};

bool is_forked(const Options& options) {
  return options.daemonize || options.new_pid_ns;
}

bool says(const std::vector<std::string>& arguments, std::string_view flag) {
  return std::ranges::any_of(arguments,
                             [flag](std::string_view one) { return one.substr(0, one.find('=')) == flag; });
}

Result<Prepared> prepare(const Plan& plan, Undo& undo) {
  MAYFLY_TRY_ASSIGN(Tree tree, make_tree(plan.tree, plan.monitor, undo));
  Prepared prepared{.tree = std::move(tree), .cgroup_members = {}, .null = std::nullopt};
  for (const CgroupPlan& cgroup : plan.cgroups) {
    MAYFLY_TRY_ASSIGN(UniqueFd procs, make_cgroup(cgroup, undo));
    prepared.cgroup_members.push_back(std::move(procs));
  }
  if (plan.options.daemonize) {
    MAYFLY_TRY_ASSIGN(prepared.null, open_file("/dev/null", O_RDWR, "what stands for standard files"));
  }
  return prepared;
}

// This thread, the process's first, goes back to where it was before the jail's groups can be removed.
Result<void> leave_groups_later(const Plan& plan, Undo& undo) {
  if (plan.cgroups.empty()) {
    return {};
  }
  MAYFLY_TRY_ASSIGN(const std::string own,
                    read_file("/proc/self/cgroup", "this process's cgroups", kMaxProcFile));
  for (const CgroupPlan& cgroup : plan.cgroups) {
    if (auto procs = open_own_cgroup(cgroup.hierarchy, own)) {
      undo.add([procs = std::make_shared<UniqueFd>(std::move(*procs)),
                path = cgroup.hierarchy.path]() -> Result<void> {
        const std::string pid = std::to_string(::getpid());
        if (::write(procs->get(), pid.data(), pid.size()) < 0) {
          return fail_errno(errno, "go back to the former cgroup of " + path);
        }
        return {};
      });
    }
  }
  return {};
}

Result<void> detach(const UniqueFd& null) {
  if (::setsid() < 0) {
    return fail_errno(errno, "--daemonize: make a session");
  }
  for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::dup2(null.get(), standard) < 0) {
      return fail_errno(errno, "--daemonize: put /dev/null in place of a standard file");
    }
  }
  return {};
}

// Whoever starts jails may be kept from the kernel's choice of what to kill for memory; a guest is not.
Result<void> reset_oom_score() {
  constexpr const char* kPath = "/proc/self/oom_score_adj";
  MAYFLY_TRY_ASSIGN(const std::string own, read_file(kPath, "the order of killing for memory", kMaxProcFile));
  if (!own.starts_with('-')) {
    return {};
  }
  MAYFLY_TRY_ASSIGN(const UniqueFd file, open_file(kPath, O_WRONLY, "the order of killing for memory"));
  if (::write(file.get(), "0", 1) != 1) {
    return fail_errno(errno, "set oom_score_adj to 0");
  }
  return {};
}

// A program inherits which signals are ignored and blocked, and whether its addresses are random.
void reset_inheritance() {
  ::personality(PER_LINUX);
  struct sigaction plain {};
  plain.sa_handler = SIG_DFL;
  for (int number = 1; number < NSIG; ++number) {
    ::sigaction(number, &plain, nullptr);  // refused for SIGKILL and SIGSTOP, which need it not
  }
  sigset_t none{};
  ::sigemptyset(&none);
  ::pthread_sigmask(SIG_SETMASK, &none, nullptr);
}

Result<void> execute(const std::vector<std::string>& arguments, const std::string& file) {
  std::vector<char*> words;
  words.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) {
    words.push_back(const_cast<char*>(argument.c_str()));  // SAFETY: execve() does not write to them
  }
  words.push_back(nullptr);
  std::array<char*, 1> environment = {nullptr};
  ::execve(file.c_str(), words.data(), environment.data());
  return fail_errno(errno, "execute " + file + " in the jail");
}

// The rest of the way, by the thread that becomes the monitor.
Result<void> enter(const Plan& plan, Prepared& prepared, const StartTimes& start,
                   std::uint64_t parent_cpu_us) {
  const Options& options = plan.options;
  if (plan.netns) {
    MAYFLY_TRY(join_netns(*plan.netns, *options.netns));
  }
  MAYFLY_TRY(enter_namespaces());
  std::vector<std::string> mounted;
  if (options.rootless) {
    for (const Device& device : plan.tree.devices) {
      mounted.push_back(device.path);
    }
  }
  MAYFLY_TRY(change_root(plan.tree.root(), prepared.tree.root, options.rootless, mounted));
  // Before the process has limits, which would be the copy's as well.
  MAYFLY_TRY(prepared.tree.monitor->finish());
  for (const Limit& limit : plan.limits) {
    MAYFLY_TRY(set_limit(limit));
  }
  for (std::size_t index = 0; index < plan.cgroups.size(); ++index) {
    MAYFLY_TRY(join_cgroup(prepared.cgroup_members[index], plan.cgroups[index]));
  }
  MAYFLY_TRY(enter_cgroup_namespace());
  if (options.core_scheduling) {
    MAYFLY_TRY(claim_cores());
  }
  MAYFLY_TRY(leave_keyring());
  MAYFLY_TRY(empty_bounding_set());
  MAYFLY_TRY(become(options.uid, options.gid, options.rootless));
  MAYFLY_TRY(drop_capabilities());
  MAYFLY_TRY(forbid_new_privileges());
  const std::string monitor = "/" + options.exec_name;
  if (plan.landlock > 0) {
    MAYFLY_TRY(confine(plan.landlock, "/", monitor));
  }
  MAYFLY_TRY(leave_terminals_alone());
  ::umask(kMonitorUmask);
  const auto arguments = monitor_arguments(options, start, parent_cpu_us);
  // Last, so that a failure of the above is still told where it can be read.
  if (prepared.null) {
    MAYFLY_TRY(detach(*prepared.null));
  }
  reset_inheritance();
  return execute(arguments, monitor);
}

Error with_what_is_left(const Error& error, const std::vector<Error>& left) {
  if (left.empty()) {
    return error;
  }
  std::string text = error.message() + "; and not everything could be taken back: ";
  for (const Error& one : left) {
    text += one.message() + "; ";
  }
  return {error.code(), text + "jailer --cleanup tries again"};
}

// This process becomes the monitor.
Result<void> become_monitor(const Plan& plan, Prepared& prepared, const StartTimes& start, Undo& undo) {
  MAYFLY_TRY(leave_groups_later(plan, undo));
  MAYFLY_TRY(write_pid(prepared.tree.pid_file, ::getpid()));
  MAYFLY_TRY_ASSIGN(const auto undo_thread, UndoThread::start(undo));
  const auto entered = enter(plan, prepared, start, 0);
  return tl::make_unexpected(with_what_is_left(entered.error(), undo_thread->run()));
}

// Whether the process has come to execute the jail's copy of the monitor.
bool is_monitor(pid_t process, const UniqueFd& root, const std::string& name) {
  struct stat meant {};
  struct stat found {};
  return ::fstatat(root.get(), name.c_str(), &meant, AT_SYMLINK_NOFOLLOW) == 0 &&
         ::stat(("/proc/" + std::to_string(process) + "/exe").c_str(), &found) == 0 &&
         meant.st_dev == found.st_dev && meant.st_ino == found.st_ino;
}

Result<void> wait_for(pid_t process, int& status) {
  while (::waitpid(process, &status, 0) != process) {
    if (errno != EINTR) {
      return fail_errno(errno, "wait for the monitor's process");
    }
  }
  return {};
}

// A child becomes the monitor; this process waits until it has, or says why not.
Result<void> start_monitor(const Plan& plan, Prepared& prepared, const StartTimes& start) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return fail_errno(errno, "make a pipe");
  }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const std::uint64_t spent_us = process_cpu_ns() / 1000 - start.cpu_us;
  const unsigned long flags =
      SIGCHLD | (plan.options.new_pid_ns ? static_cast<unsigned long>(CLONE_NEWPID) : 0);
  const long child = ::syscall(SYS_clone, flags, nullptr, nullptr, nullptr, nullptr);
  if (child < 0) {
    return fail_errno(errno, "make the monitor's process");
  }
  if (child == 0) {
    // Its CPU time starts at 0.
    const auto entered = enter(plan, prepared, {.monotonic_us = start.monotonic_us, .cpu_us = 0}, spent_us);
    const std::string& text = entered.error().message();
    const bool told = ::write(writer.get(), text.data(), text.size()) >= 0;
    ::_exit(told ? 1 : 2);
  }
  writer.reset();
  auto written = write_pid(prepared.tree.pid_file, static_cast<pid_t>(child));
  std::string problem;
  std::array<char, 4096> buffer{};
  for (;;) {  // the pipe closes when the child executes the monitor, or ends
    const ssize_t count = ::read(reader.get(), buffer.data(), buffer.size());
    if (count > 0) {
      problem.append(buffer.data(), static_cast<std::size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      break;
    }
  }
  int status = 0;
  if (!written || !problem.empty()) {
    ::kill(static_cast<pid_t>(child), SIGKILL);
    static_cast<void>(wait_for(static_cast<pid_t>(child), status));
    return written ? fail(ErrorCode::kIo, problem) : written;
  }
  if (is_monitor(static_cast<pid_t>(child), prepared.tree.root, plan.options.exec_name)) {
    return {};
  }
  // Its end of the pipe is closed, so it has ended, or is about to.
  MAYFLY_TRY(wait_for(static_cast<pid_t>(child), status));
  if (WIFSIGNALED(status)) {
    return fail(ErrorCode::kIo,
                "the monitor's process was killed by signal " + std::to_string(WTERMSIG(status)));
  }
  return {};  // without a word it ends as the monitor only, if a short-lived one
}

// What becomes another user, and what executes a file that it cannot read, is dumpable as this says
// (proc(5)): with 1, a process of the jail's user could trace the jailer as it changes its user, with a
// thread that is root, and the monitor.
Result<void> check_dumpable() {
  constexpr const char* kPath = "/proc/sys/fs/suid_dumpable";
  MAYFLY_TRY_ASSIGN(const std::string mode, read_file(kPath, "who may be traced", kMaxProcFile));
  if (mode.starts_with('1')) {
    return fail(
        ErrorCode::kUnsupported,
        "fs.suid_dumpable is 1, by which any process of --uid could trace this one; 0 or 2 (sysctl) keeps "
        "them apart");
  }
  return {};
}

}  // namespace

Result<Plan> make_plan(Options options) {
  MAYFLY_TRY_ASSIGN(UniqueFd monitor, open_monitor(options));
  MAYFLY_TRY_ASSIGN(const std::string misc, read_file("/proc/misc", "the list of devices", kMaxProcFile));
  TreePlan tree{.base = options.chroot_base,
                .name = options.exec_name,
                .id = options.id,
                .user = options.uid,
                .group = options.gid,
                .is_rootless = options.rootless,
                .devices = jail_devices(misc)};
  if (tree.root().size() > kMaxPath) {
    return fail(ErrorCode::kInvalidArgument,
                "--chroot-base-dir " + shown(options.chroot_base) +
                    ": the jail's root directory in it has a path of more than 4095 "
                    "characters");
  }
  if (options.rootless) {
    // There is nothing to mount where the host has no such device.
    std::erase_if(tree.devices,
                  [](const Device& device) { return ::access(("/dev/" + device.path).c_str(), F_OK) != 0; });
  } else if (::geteuid() != 0) {
    return fail(ErrorCode::kPermission, "a jail takes root to make; --rootless makes a weaker one without");
  } else {
    MAYFLY_TRY(check_dumpable());
  }
  std::optional<UniqueFd> netns;
  if (options.netns) {
    MAYFLY_TRY_ASSIGN(netns, open_netns(*options.netns));
  }
  std::vector<CgroupPlan> cgroups;
  if (!options.cgroups.empty() || options.parent_cgroup) {
    MAYFLY_TRY_ASSIGN(const std::string mounts,
                      read_file("/proc/self/mountinfo", "the mounts", kMaxProcFile));
    MAYFLY_TRY_ASSIGN(cgroups, plan_cgroups(options, cgroup_hierarchies(mounts)));
    for (const CgroupPlan& cgroup : cgroups) {
      if (!cgroup.is_joined_only) {
        tree.cgroups.push_back(cgroup.hierarchy.path + "/" + cgroup.group);
      }
    }
  }
  auto limits = jail_limits(options);
  return Plan{.options = std::move(options),
              .monitor = std::move(monitor),
              .tree = std::move(tree),
              .netns = std::move(netns),
              .cgroups = std::move(cgroups),
              .limits = std::move(limits),
              .landlock = landlock_version()};
}

Result<void> rehearse(const Plan& plan) {
  MAYFLY_TRY(check_tree(plan.tree));
  for (const CgroupPlan& cgroup : plan.cgroups) {
    MAYFLY_TRY(check_cgroup(cgroup));
  }
  if (plan.options.rootless) {
    MAYFLY_TRY(enter_user_namespace(plan.options.uid, plan.options.gid));
  }
  if (plan.netns) {
    MAYFLY_TRY(join_netns(*plan.netns, *plan.options.netns));
  }
  MAYFLY_TRY(enter_namespaces());
  for (const Limit& limit : plan.limits) {
    MAYFLY_TRY(check_limit(limit));
  }
  return plan.options.core_scheduling ? claim_cores() : Result<void>();
}

std::string describe(const Plan& plan) {
  const Options& options = plan.options;
  std::vector<std::string> lines = describe(plan.tree, options.exec_file);
  for (const CgroupPlan& cgroup : plan.cgroups) {
    const std::string path = cgroup.hierarchy.path + "/" + cgroup.group;
    if (!cgroup.is_joined_only) {
      lines.push_back("make the cgroup " + path);
    }
    for (const CgroupSetting& setting : cgroup.settings) {
      lines.push_back("set " + path + "/" + setting.file + " to " + setting.value);
    }
  }
  if (options.rootless) {
    lines.emplace_back("enter a user namespace, as user " + std::to_string(options.uid) + " there");
  }
  if (options.new_pid_ns) {
    lines.emplace_back("make a process in a PID namespace of its own");
  } else if (options.daemonize) {
    lines.emplace_back("make a process");
  }
  if (options.netns) {
    lines.push_back("join the network namespace " + *options.netns);
  }
  lines.emplace_back("enter mount, IPC and UTS namespaces");
  lines.push_back("make " + plan.tree.root() + " the root directory, and take away every other mount");
  for (const Limit& limit : plan.limits) {
    lines.push_back(std::string("limit ") + limit.name + " to " + std::to_string(limit.value));
  }
  for (const CgroupPlan& cgroup : plan.cgroups) {
    lines.push_back("join the cgroup " + cgroup.hierarchy.path + "/" + cgroup.group);
  }
  lines.emplace_back("enter a cgroup namespace");
  if (options.core_scheduling) {
    lines.emplace_back("keep other work off the sibling threads of its cores");
  }
  lines.emplace_back("leave the caller's keyring, and empty the bounding set of capabilities");
  lines.push_back("become user " + std::to_string(options.uid) + ", group " + std::to_string(options.gid));
  lines.emplace_back("drop all capabilities, and forbid new privileges");
  lines.push_back(plan.landlock > 0 ? "confine it by Landlock, version " + std::to_string(plan.landlock) +
                                          ": to the jail's files, without connecting or binding by TCP"
                                    : "leave Landlock out: this host has none");
  lines.emplace_back("refuse it to type into a terminal, by a filter of system calls");
  if (options.daemonize) {
    lines.emplace_back("make a session, with /dev/null as standard files");
  }
  std::string command = "execute, with an empty environment:";
  for (const std::string& argument : monitor_arguments(options, {}, 0)) {
    command.append(" ").append(argument);
  }
  lines.push_back(std::move(command));
  std::string text;
  for (const std::string& line : lines) {
    text.append(line).append("\n");
  }
  return text;
}

std::vector<std::string> monitor_arguments(const Options& options, const StartTimes& start,
                                           std::uint64_t parent_cpu_us) {
  std::vector<std::string> arguments = {options.exec_name,
                                        "--id",
                                        options.id,
                                        "--start-time-us",
                                        std::to_string(start.monotonic_us),
                                        "--start-time-cpu-us",
                                        std::to_string(start.cpu_us),
                                        "--parent-cpu-time-us",
                                        std::to_string(parent_cpu_us)};
  const auto& own = options.monitor_arguments;
  arguments.insert(arguments.end(), own.begin(), own.end());
  const bool is_subcommand = !own.empty() && !own.front().starts_with('-');
  if (!is_subcommand && !says(own, "--api-sock") && !says(own, "--no-api")) {
    arguments.insert(arguments.end(), {"--api-sock", "/run/" + options.exec_name + ".socket"});
  }
  return arguments;
}

Result<void> run_jail(Plan plan, const StartTimes& start) {
  Undo undo;
  // While it is made, a jail is made to its end or taken back to its beginning. What arrives meanwhile
  // reaches the monitor.
  sigset_t all{};
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
  ::umask(0);
  auto prepared = prepare(plan, undo);
  Result<void> entered = prepared.map([](const Prepared&) {});
  if (entered && (is_forked(plan.options) || plan.options.rootless)) {
    entered = prepared->tree.monitor
                  ->finish();  // neither another process nor a user namespace takes a thread along
  }
  if (entered) {
    entered = reset_oom_score();
  }
  if (entered && plan.options.rootless) {
    entered = enter_user_namespace(plan.options.uid, plan.options.gid);
  }
  if (entered) {
    if (!is_forked(plan.options)) {
      entered = become_monitor(plan, *prepared, start, undo);
    } else {
      entered = start_monitor(plan, *prepared, start);
      if (entered) {
        return {};
      }
    }
  }
  return tl::make_unexpected(with_what_is_left(entered.error(), undo.run()));
}

}  // namespace mayfly::jail
