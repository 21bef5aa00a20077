#include "cgroup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <set>
#include <thread>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "safe_path.h"

namespace mayfly::jail {
namespace {

constexpr std::size_t kMaxFile = std::size_t{1} << 20U;
constexpr const char* kRole = "cgroup file";

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::string_view part = text.substr(0, text.find(separator));
    if (!part.empty()) {
      parts.push_back(part);
    }
    text.remove_prefix(std::min(text.size(), part.size() + 1));
  }
  return parts;
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n";
  text.remove_prefix(std::min(text.size(), text.find_first_not_of(kSpace)));
  return text.substr(0, text.find_last_not_of(kSpace) + 1);
}

// proc(5): space, tab, newline and backslash of a path are written as \040 and so on.
std::string unescape(std::string_view text) {
  std::string plain;
  for (std::size_t at = 0; at < text.size(); ++at) {
    unsigned value = 0;
    if (text[at] == '\\' && at + 3 < text.size() &&
        std::from_chars(text.data() + at + 1, text.data() + at + 4, value, 8).ec == std::errc()) {
      plain += static_cast<char>(value);
      at += 3;
    } else {
      plain += text[at];
    }
  }
  return plain;
}

bool has(const std::vector<std::string>& names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

// "64M" in bytes, or a plain number, with a plus sign or without; "-1" and others are not.
std::optional<std::uint64_t> amount_of(std::string_view text) {
  std::uint64_t factor = 1;
  text.remove_prefix(text.starts_with('+') ? 1 : 0);
  if (!text.empty()) {
    const std::size_t unit = std::string_view("kKmMgGtTpPeE").find(text.back());
    if (unit != std::string_view::npos) {
      factor = std::uint64_t{1} << (10U * (unit / 2 + 1));
      text.remove_suffix(1);
    }
  }
  const auto number = parse_integer<std::uint64_t>(text);
  if (!number || *number > UINT64_MAX / factor) {
    return std::nullopt;
  }
  return *number * factor;
}

// "0-2,5" as its members; nothing for what is no list, or has members that no machine has.
std::optional<std::set<unsigned>> list_of(std::string_view text) {
  constexpr unsigned kMaxMember = 8192;
  std::set<unsigned> members;
  for (const std::string_view part : split(text, ',')) {
    const std::size_t dash = part.find('-');
    const auto first = parse_integer<unsigned>(part.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : parse_integer<unsigned>(part.substr(dash + 1));
    if (!first || !last || *last < *first || *last > kMaxMember) {
      return std::nullopt;
    }
    for (unsigned member = *first; member <= *last; ++member) {
      members.insert(member);
    }
  }
  return members;
}

// What amount_of() and list_of() are for, whether or not they can say how much it is.
bool is_number_or_list(std::string_view word) {
  return !word.empty() && word.find_first_not_of("0123456789,-+kKmMgGtTpPeE") == std::string_view::npos &&
         word.find_first_of("0123456789") != std::string_view::npos;
}

std::uint64_t page_size() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

// One word of a value. The kernel took it: of a format that is not known here that has to do.
bool word_reads_as(std::string_view written, std::string_view read) {
  constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 62U;  // and above, as the kernel may round it
  const auto amount = [](std::string_view word) {
    return word == "max" || word == "-1" ? std::optional(UINT64_MAX) : amount_of(word);
  };
  const auto meant = amount(written);
  const auto found = amount(read);
  if (written == read || !(meant || is_number_or_list(written))) {
    return true;
  }
  if (meant && found) {
    return *meant == *found || *meant - *meant % page_size() == *found ||
           (*meant >= kUnlimited && *found >= kUnlimited);
  }
  const auto meant_list = list_of(written);
  const auto found_list = list_of(read);
  return meant_list && found_list ? *meant_list == *found_list : !is_number_or_list(read);
}

// Version 1 lets a thread move by itself. A whole process is moved under a lock that waits for every
// processor of the host first: milliseconds for each group.
const char* members_file(const CgroupHierarchy& hierarchy) {
  return hierarchy.version == CgroupVersion::k1 ? "tasks" : "cgroup.procs";
}

Result<void> write_to(const UniqueFd& file, std::string_view value, const std::string& path) {
  if (::write(file.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size())) {
    return fail_errno(errno, std::string("write ").append(shown(value)).append(" to ").append(path));
  }
  return {};
}

Result<void> write_value(const std::string& path, std::string_view value) {
  MAYFLY_TRY_ASSIGN(const UniqueFd file, open_file(path, O_WRONLY | O_NOFOLLOW, kRole));
  return write_to(file, value, path);
}

// As it was given.
std::string flag_of(const CgroupSetting& setting) {
  return "--cgroup " + shown(setting.file + "=" + setting.value);
}

// Which version alone has this file of a controller that both have: what is taken for the other's most often.
std::optional<CgroupVersion> only_version(std::string_view file) {
  constexpr std::array kOf1 = std::to_array<std::string_view>(
      {"cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us", "cpu.rt_runtime_us",
       "cpu.rt_period_us", "memory.swappiness", "memory.oom_control", "memory.use_hierarchy",
       "memory.move_charge_at_immigrate"});
  constexpr std::array kOf2 = std::to_array<std::string_view>(
      {"cpu.weight", "cpu.weight.nice", "cpu.max", "cpu.max.burst", "memory.min", "memory.low", "memory.high",
       "memory.max", "memory.oom.group", "memory.swap.high", "memory.swap.max", "memory.zswap.max"});
  if (std::ranges::find(kOf1, file) != kOf1.end() || file.ends_with("_in_bytes")) {
    return CgroupVersion::k1;
  }
  if (std::ranges::find(kOf2, file) != kOf2.end() ||
      (file.starts_with("hugetlb.") && file.ends_with(".max"))) {
    return CgroupVersion::k2;
  }
  return std::nullopt;
}

std::string lacks(const CgroupSetting& setting) {
  return flag_of(setting)
      .append(": this host has no controller ")
      .append(setting.controller())
      .append(" of cgroup version ");
}

// A jail's own group, held by its descriptor: the owner of its parent can put another in the place of its
// name.
struct Group {
  UniqueFd folder;
  std::string path;  // for errors
};

Result<Group> open_made(std::string path) {
  MAYFLY_TRY_ASSIGN(UniqueFd folder, open_file(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, "cgroup"));
  struct stat found {};
  if (::fstat(folder.get(), &found) != 0) {
    return fail_errno(errno, "look at cgroup " + path);
  }
  if (found.st_uid != ::geteuid()) {
    return fail(ErrorCode::kInvalidArgument,
                path + ": belongs to user " + std::to_string(found.st_uid) + ", and not to who made it");
  }
  return Group{.folder = std::move(folder), .path = std::move(path)};
}

Result<UniqueFd> open_in(const Group& group, const std::string& file, int flags) {
  UniqueFd opened(::openat(group.folder.get(), file.c_str(), flags | O_NOFOLLOW | O_CLOEXEC));
  if (!opened) {
    return fail_errno(errno, std::string("open ") + kRole + " " + group.path + "/" + file);
  }
  return opened;
}

Result<std::string> read_in(const Group& group, const std::string& name) {
  MAYFLY_TRY_ASSIGN(const UniqueFd file, open_in(group, name, O_RDONLY));
  std::string text;
  std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t count = ::read(file.get(), buffer.data(), buffer.size());
    if (count < 0) {
      return fail_errno(errno, std::string("read ") + kRole + " " + group.path + "/" + name);
    }
    text.append(buffer.data(), static_cast<std::size_t>(count));
    if (count == 0 || text.size() > kMaxFile) {
      return text;
    }
  }
}

Result<void> write_in(const Group& group, const CgroupSetting& setting, bool& is_readable) {
  MAYFLY_TRY_ASSIGN(const UniqueFd file, open_in(group, setting.file, O_WRONLY));
  struct stat found {};
  is_readable = ::fstat(file.get(), &found) != 0 || (found.st_mode & S_IRUSR) != 0;
  return write_to(file, setting.value, group.path + "/" + setting.file);
}

Result<void> set_value(const Group& group, const CgroupSetting& setting) {
  const std::string flag = flag_of(setting);
  const std::string path = group.path + "/" + setting.file;
  bool is_readable = true;
  if (auto written = write_in(group, setting, is_readable); !written) {
    return tl::make_unexpected(written.error().within(flag));
  }
  if (!is_readable) {
    return {};  // devices.allow and others are for writing only
  }
  auto read = read_in(group, setting.file);
  if (!read) {
    return tl::make_unexpected(read.error().within(flag));
  }
  if (!reads_as(setting.value, *read)) {
    return fail(ErrorCode::kInvalidArgument, flag + ": " + path + " reads " + shown(trimmed(*read)) +
                                                 " afterwards: not the value written");
  }
  return {};
}

// A new group of version 1's cpuset takes no process before it has CPUs and memory nodes: those of its
// parent.
Result<void> inherit_cpuset(const std::string& parent, const std::string& group) {
  for (const char* const file : {"/cpuset.cpus", "/cpuset.mems"}) {
    MAYFLY_TRY_ASSIGN(const std::string own, read_file(group + file, kRole, kMaxFile));
    if (trimmed(own).empty()) {
      MAYFLY_TRY_ASSIGN(const std::string inherited, read_file(parent + file, kRole, kMaxFile));
      MAYFLY_TRY(write_value(group + file, trimmed(inherited)));
    }
  }
  return {};
}

// Version 2: a group has the controllers that its parent hands down. Where that is so already, nothing is
// written, so that a sub-tree that was handed over to us is enough.
Result<void> hand_down(const std::string& parent, const std::vector<CgroupSetting>& settings) {
  MAYFLY_TRY_ASSIGN(const std::string text, read_file(parent + "/cgroup.subtree_control", kRole, kMaxFile));
  std::vector<std::string> handed;
  for (const std::string_view name : split(trimmed(text), ' ')) {
    handed.emplace_back(name);
  }
  for (const CgroupSetting& setting : settings) {
    const std::string controller = setting.controller();
    if (has(handed, controller)) {
      continue;
    }
    if (auto written = write_value(parent + "/cgroup.subtree_control", "+" + controller); !written) {
      std::string why = flag_of(setting);
      why.append(": ")
          .append(parent)
          .append(" does not hand the controller ")
          .append(controller)
          .append(" down");
      if (written.error().os_errno() == EBUSY) {
        why += ", and cannot while it has processes of its own";
      }
      return tl::make_unexpected(written.error().within(why));
    }
    handed.push_back(controller);
  }
  return {};
}

tl::unexpected<Error> is_used(const std::string& path) {
  return fail(ErrorCode::kBusy, path +
                                    ": the cgroup is there already: of a jail of this --id that runs, or "
                                    "left by one that has ended (jailer --cleanup removes it)");
}

// Makes one group of the path; answers whether it was not there.
Result<bool> make_group(const std::string& path, bool must_be_new) {
  if (::mkdir(path.c_str(), 0755) == 0) {
    return true;
  }
  if (errno == EEXIST && !must_be_new) {
    return false;
  }
  if (errno == EEXIST) {
    return is_used(path);
  }
  return fail_errno(errno, "make cgroup " + path);
}

// The groups on the way, and the jail's own.
Result<Group> make_path(const CgroupPlan& plan, Undo& undo) {
  std::string parent = plan.hierarchy.path;
  const auto names = split(plan.group, '/');
  const bool is_v2 = plan.hierarchy.version == CgroupVersion::k2;
  const bool is_cpuset = !is_v2 && has(plan.hierarchy.controllers, "cpuset");
  for (std::size_t at = 0;; ++at) {
    if (is_v2) {
      MAYFLY_TRY(hand_down(parent, plan.settings));
    }
    const std::string path = parent + "/" + std::string(names[at]);
    const bool is_own = at + 1 == names.size();
    MAYFLY_TRY_ASSIGN(const bool is_new, make_group(path, is_own));
    if (is_new) {
      undo.add([path, is_own]() { return is_own ? remove_cgroup(path) : remove_unused_cgroup(path); });
    }
    if (is_cpuset) {
      MAYFLY_TRY(inherit_cpuset(parent, path));
    }
    if (is_own) {
      return open_made(path);
    }
    parent = path;
  }
}

// The members of a group that is not the jail's own.
Result<UniqueFd> open_joined(const CgroupPlan& plan) {
  const std::string group = plan.hierarchy.path + "/" + plan.group;
  auto members = open_file(group + "/" + members_file(plan.hierarchy), O_WRONLY | O_NOFOLLOW, kRole);
  if (!members) {
    return tl::make_unexpected(members.error().within("--parent-cgroup " + shown(plan.group)));
  }
  return members;
}

bool is_folder(const std::string& path) {
  struct stat found {};
  return ::lstat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode);
}

// Some group in which a file of the controller's must be if groups have it at all: the root has fewer.
// Nothing where there is none yet.
Result<std::optional<std::string>> group_with(const CgroupHierarchy& hierarchy,
                                              const std::string& controller) {
  if (hierarchy.version == CgroupVersion::k2) {
    MAYFLY_TRY_ASSIGN(const std::string handed,
                      read_file(hierarchy.path + "/cgroup.subtree_control", kRole, kMaxFile));
    const auto handed_names = split(trimmed(handed), ' ');
    if (std::ranges::find(handed_names, controller) == handed_names.end()) {
      return std::nullopt;
    }
  }
  MAYFLY_TRY_ASSIGN(const UniqueFd folder, open_file(hierarchy.path, O_RDONLY | O_DIRECTORY, kRole));
  MAYFLY_TRY_ASSIGN(const auto names, names_in(folder, hierarchy.path));
  for (const std::string& name : names) {
    std::string path = hierarchy.path + "/" + name;
    if (is_folder(path)) {
      return path;
    }
  }
  return std::nullopt;
}

// Version 2: whether a group that is there already can hand the jail's controllers down.
Result<void> check_handing_down(const std::string& parent, const std::vector<CgroupSetting>& settings) {
  MAYFLY_TRY_ASSIGN(const std::string offered, read_file(parent + "/cgroup.controllers", kRole, kMaxFile));
  const auto names = split(trimmed(offered), ' ');
  for (const CgroupSetting& setting : settings) {
    if (std::ranges::find(names, setting.controller()) == names.end()) {
      return fail(ErrorCode::kUnsupported,
                  flag_of(setting).append(": ").append(parent).append(" does not have the controller ") +
                      setting.controller());
    }
  }
  // The root, which has no type, may have processes of its own besides.
  if (::access((parent + "/cgroup.type").c_str(), F_OK) == 0) {
    MAYFLY_TRY_ASSIGN(const std::string processes, read_file(parent + "/cgroup.procs", kRole, kMaxFile));
    if (!processes.empty()) {
      return fail(ErrorCode::kBusy,
                  parent + " cannot hand controllers down while it has processes of its own");
    }
  }
  return {};
}

}  // namespace

std::vector<CgroupHierarchy> cgroup_hierarchies(std::string_view mountinfo) {
  // 36 35 98:0 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu
  constexpr std::size_t kMountPoint = 4;
  std::vector<CgroupHierarchy> hierarchies;
  std::set<std::string, std::less<>> seen;
  for (const std::string_view line : split(mountinfo, '\n')) {
    const std::size_t separator = line.find(" - ");
    if (separator == std::string_view::npos) {
      continue;
    }
    const auto mount = split(line.substr(0, separator), ' ');
    const auto system = split(line.substr(separator + 3), ' ');
    if (mount.size() <= kMountPoint || system.size() < 3 ||
        (system[0] != "cgroup" && system[0] != "cgroup2")) {
      continue;
    }
    CgroupHierarchy found{.path = unescape(mount[kMountPoint]),
                          .version = system[0] == "cgroup" ? CgroupVersion::k1 : CgroupVersion::k2,
                          .controllers = {}};
    std::string key(system[0]);
    if (found.version == CgroupVersion::k1) {
      for (const std::string_view option : split(system[2], ',')) {
        if (option != "rw" && option != "ro" && option.find('=') == std::string_view::npos) {
          found.controllers.emplace_back(option);
        }
      }
      key.append(":").append(system[2].substr(std::min<std::size_t>(2, system[2].size())));
    }
    if (seen.insert(key).second) {
      hierarchies.push_back(std::move(found));
    }
  }
  return hierarchies;
}

Result<std::vector<CgroupPlan>> plan_cgroups(const Options& options,
                                             const std::vector<CgroupHierarchy>& hierarchies) {
  std::vector<CgroupPlan> plans;
  const bool is_v2 = options.cgroup_version == CgroupVersion::k2;
  const std::string own = options.cgroup_parent() + "/" + options.id;
  const auto of_version = [&](const CgroupHierarchy& one) { return one.version == options.cgroup_version; };
  if (options.cgroups.empty()) {
    if (is_v2 && options.parent_cgroup) {
      const auto found = std::ranges::find_if(hierarchies, of_version);
      if (found == hierarchies.end()) {
        return fail(ErrorCode::kUnsupported, "--cgroup-version 2: no such hierarchy is mounted on this host");
      }
      plans.push_back(
          {.hierarchy = *found, .group = *options.parent_cgroup, .settings = {}, .is_joined_only = true});
    }
    return plans;
  }
  for (const CgroupSetting& setting : options.cgroups) {
    const std::string controller = setting.controller();
    const auto found = std::ranges::find_if(hierarchies, [&](const CgroupHierarchy& one) {
      return of_version(one) && (is_v2 || has(one.controllers, controller));
    });
    if (found == hierarchies.end()) {
      return fail(
          ErrorCode::kUnsupported,
          lacks(setting) + (is_v2 ? "2, which is not mounted" : "1 (--cgroup-version 2 means the other)"));
    }
    if (is_v2) {
      MAYFLY_TRY_ASSIGN(const std::string text,
                        read_file(found->path + "/cgroup.controllers", kRole, kMaxFile));
      const auto offered = split(trimmed(text), ' ');
      if (std::ranges::find(offered, controller) == offered.end()) {
        std::string why = lacks(setting);
        why.append("2; ")
            .append(found->path)
            .append(" offers ")
            .append(offered.empty() ? "none" : shown(trimmed(text)));
        return fail(ErrorCode::kUnsupported, std::move(why));
      }
    }
    const auto only = only_version(setting.file);
    if (only && *only != options.cgroup_version) {
      return fail(
          ErrorCode::kInvalidArgument,
          flag_of(setting) + (is_v2 ? ": is a file of cgroup version 1, and --cgroup-version 2 is given"
                                    : ": is a file of cgroup version 2, which --cgroup-version 2 means"));
    }
    auto plan =
        std::ranges::find_if(plans, [&](const CgroupPlan& one) { return one.hierarchy.path == found->path; });
    if (plan == plans.end()) {
      plans.push_back({.hierarchy = *found, .group = own, .settings = {}});
      plan = std::prev(plans.end());
    }
    plan->settings.push_back(setting);
  }
  return plans;
}

bool reads_as(std::string_view written, std::string_view read) {
  const auto meant = split(trimmed(written), ' ');
  const auto lines = split(trimmed(read), '\n');
  if (meant.empty() || lines.empty()) {
    return meant.empty() || !is_number_or_list(meant.front());
  }
  std::string_view line = lines.front();
  constexpr std::string_view kDefault = "default ";  // io.weight, before those of single devices
  if (meant.size() == 1 && line.starts_with(kDefault)) {
    line.remove_prefix(kDefault.size());
  } else if (lines.size() > 1) {
    const auto own = std::ranges::find_if(
        lines, [&](std::string_view one) { return split(one, ' ').front() == meant.front(); });
    if (meant.size() == 1 || own == lines.end()) {
      return true;
    }
    line = *own;
  }
  const auto found = split(line, ' ');
  for (std::size_t at = 0; at < std::min(meant.size(), found.size()); ++at) {
    if (!word_reads_as(meant[at], found[at])) {
      return false;
    }
  }
  return true;
}

Result<UniqueFd> make_cgroup(const CgroupPlan& plan, Undo& undo) {
  if (plan.is_joined_only) {
    return open_joined(plan);
  }
  // A jail that ends may take a parent away that this one was about to use.
  constexpr int kTries = 10;
  auto made = make_path(plan, undo);
  for (int tries = 1; !made && made.error().os_errno() == ENOENT && tries < kTries; ++tries) {
    made = make_path(plan, undo);
  }
  MAYFLY_TRY_ASSIGN(const Group group, std::move(made));
  for (const CgroupSetting& setting : plan.settings) {
    MAYFLY_TRY(set_value(group, setting));
  }
  return open_in(group, members_file(plan.hierarchy), O_WRONLY);
}

Result<void> check_cgroup(const CgroupPlan& plan) {
  const CgroupHierarchy& hierarchy = plan.hierarchy;
  const std::string group = hierarchy.path + "/" + plan.group;
  if (plan.is_joined_only) {
    return open_joined(plan).map([](const UniqueFd&) {});
  }
  if (is_folder(group)) {
    return is_used(group);
  }
  if (hierarchy.version == CgroupVersion::k2) {
    std::string parent = hierarchy.path;
    for (const std::string_view name : split(plan.group, '/')) {
      if (!is_folder(parent)) {
        break;
      }
      MAYFLY_TRY(check_handing_down(parent, plan.settings));
      parent.append("/").append(name);
    }
  }
  for (const CgroupSetting& setting : plan.settings) {
    MAYFLY_TRY_ASSIGN(const auto like, group_with(hierarchy, setting.controller()));
    if (like && ::access((*like + "/" + setting.file).c_str(), F_OK) != 0) {
      return fail_errno(errno, flag_of(setting) + ": look for it in " + *like);
    }
  }
  return {};
}

Result<void> join_cgroup(const UniqueFd& members, const CgroupPlan& plan) {
  if (::write(members.get(), "0", 1) == 1) {
    return {};
  }
  const int error = errno;
  std::string doing = "join cgroup " + plan.hierarchy.path + "/" + plan.group;
  if (error ==
      EOPNOTSUPP) {  // cgroup v2, "Threads": of controllers that a parent with processes may hand down
    doing += ", whose parent has processes of its own";
  }
  return fail_errno(error, doing);
}

std::optional<UniqueFd> open_own_cgroup(const CgroupHierarchy& hierarchy, std::string_view own_cgroups) {
  for (const std::string_view line : split(own_cgroups, '\n')) {  // "4:cpu,cpuacct:/path", "0::/path"
    const std::size_t names = line.find(':');
    const std::size_t path = names == std::string_view::npos ? names : line.find(':', names + 1);
    if (path == std::string_view::npos) {
      continue;
    }
    const auto controllers = split(line.substr(names + 1, path - names - 1), ',');
    const bool is_meant = hierarchy.version == CgroupVersion::k2
                              ? line.starts_with("0::")
                              : std::ranges::any_of(controllers, [&](std::string_view one) {
                                  return has(hierarchy.controllers, one);
                                });
    if (is_meant) {
      const std::string own = hierarchy.path + std::string(line.substr(path + 1));
      auto members = open_file(own + "/" + members_file(hierarchy), O_WRONLY, kRole);
      return members ? std::optional(std::move(*members)) : std::nullopt;
    }
  }
  return std::nullopt;
}

Result<void> remove_cgroup(const std::string& path) {
  constexpr int kTries = 100;
  for (int tries = 0;; ++tries) {
    if (::rmdir(path.c_str()) == 0 || errno == ENOENT) {
      return {};
    }
    if (errno != EBUSY || tries == kTries) {
      return fail_errno(errno, "remove cgroup " + path);
    }
    // A process that has ended but in name only is still in it; and so is one that runs.
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

Result<void> remove_unused_cgroup(const std::string& path) {
  if (::rmdir(path.c_str()) == 0 || errno == ENOENT || errno == EBUSY || errno == ENOTEMPTY) {
    return {};
  }
  return fail_errno(errno, "remove cgroup " + path);
}

}  // namespace mayfly::jail
