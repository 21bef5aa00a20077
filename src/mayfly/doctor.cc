#include "mayfly/doctor.h"

#include <fcntl.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <string_view>

#include "base/file.h"
#include "base/unique_fd.h"
#include "kvm/host_kind.h"
#include "kvm/kvm.h"

namespace mayfly {
namespace {

std::optional<std::string> read_text(const std::string& path) {
  auto text = read_file(path, "file", std::size_t{1} << 20);
  return text ? std::optional<std::string>(std::move(*text)) : std::nullopt;
}

std::optional<std::uint64_t> read_number(const std::string& path) {
  const auto text = read_text(path);
  std::uint64_t value = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), value).ec != std::errc()) {
    return std::nullopt;
  }
  return value;
}

Finding processor(const HostView& host) {
  const HostFacts facts = read_host_facts(host.root + "/proc/cpuinfo", host.root + "/sys/module");
  const std::string model = facts.cpu_model.empty() ? "unknown" : facts.cpu_model;
  if (const std::string_view extension = processor_extension(facts); !extension.empty()) {
    return {Verdict::kGood, "processor", model + ", hardware virtualization " + std::string(extension), ""};
  }
  return {
      Verdict::kLimited, "processor", model + ", no hardware virtualization (neither vmx nor svm)",
      "Switch on VT-x or AMD-V in the firmware; in a virtual machine, nested virtualization in its host."};
}

std::vector<Finding> kvm(const HostView& host) {
  const auto warnings = host.check_kvm();
  if (!warnings) {
    // Kvm::open() says in its error what to do about it.
    return {{Verdict::kBad, "KVM", warnings.error().message(), ""}};
  }
  std::vector<Finding> findings;
  if (host.kvm_is_hardware()) {
    findings.push_back({Verdict::kGood, "KVM", "usable, with hardware virtualization", ""});
  } else {
    findings.push_back(
        {Verdict::kLimited, "KVM",
         "usable, but without hardware virtualization: guests are interpreted, and Linux may not boot",
         "Use a host with hardware virtualization for real guests."});
  }
  for (const std::string& warning : *warnings) {
    findings.push_back({Verdict::kLimited, "KVM capability", warning, "A newer host kernel may have it."});
  }
  return findings;
}

Finding tun(const HostView& host) {
  const std::string path = host.root + "/dev/net/tun";
  if (::access(path.c_str(), F_OK) != 0) {
    return {Verdict::kLimited, "network (tun)", path + " does not exist: no tap interfaces", "modprobe tun"};
  }
  if (::access(path.c_str(), R_OK | W_OK) != 0) {
    return {Verdict::kLimited, "network (tun)", path + " is not accessible to this user",
            "Give this user access: a udev rule, or run as root."};
  }
  return {Verdict::kGood, "network (tun)", path + " is accessible", ""};
}

Finding huge_pages(const HostView& host) {
  const std::string folder = host.root + "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const auto total = read_number(folder + "nr_hugepages");
  if (!total) {
    return {Verdict::kLimited, "huge pages", "the kernel has no 2 MiB pages", ""};
  }
  const auto free = read_number(folder + "free_hugepages").value_or(0);
  const std::string detail =
      std::to_string(*total) + " pages of 2 MiB reserved, " + std::to_string(free) + " of them free";
  if (*total == 0) {
    return {Verdict::kLimited, "huge pages", detail,
            "For guests with reserved huge pages: sysctl vm.nr_hugepages=N, N pages of 2 MiB."};
  }
  return {Verdict::kGood, "huge pages", detail, ""};
}

Finding transparent_huge_pages(const HostView& host) {
  const std::string path = host.root + "/sys/kernel/mm/transparent_hugepage/enabled";
  const std::string text = read_text(path).value_or("");
  const auto open = text.find('[');
  const auto close = text.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) {
    return {Verdict::kLimited, "transparent huge pages", "not in this kernel", ""};
  }
  const std::string mode = text.substr(open + 1, close - open - 1);
  if (mode == "never") {
    return {Verdict::kLimited, "transparent huge pages", "mode \"never\"", "echo madvise > " + path};
  }
  return {Verdict::kGood, "transparent huge pages", "mode \"" + mode + "\"", ""};
}

Finding control_groups(const HostView& host) {
  const std::string folder = host.root + "/sys/fs/cgroup";
  if (const auto controllers = read_text(folder + "/cgroup.controllers")) {
    std::string list = *controllers;
    list.erase(std::remove(list.begin(), list.end(), '\n'), list.end());
    return {Verdict::kGood, "cgroups", "version 2, controllers: " + (list.empty() ? "none" : list), ""};
  }
  if (::access((folder + "/memory").c_str(), F_OK) == 0 || ::access((folder + "/cpu").c_str(), F_OK) == 0) {
    return {Verdict::kGood, "cgroups", "version 1", ""};
  }
  return {Verdict::kLimited, "cgroups", "not mounted at /sys/fs/cgroup: no resource limits for a jail",
          "mount -t cgroup2 none /sys/fs/cgroup"};
}

Finding user_fault_fd(const HostView& host) {
  if (const auto usable = host.check_userfaultfd(); !usable) {
    return {Verdict::kLimited, "userfaultfd", usable.error().message(),
            "For snapshots paged in by another process: run as root, or give this user access to "
            "/dev/userfaultfd."};
  }
  return {Verdict::kGood, "userfaultfd", "usable", ""};
}

Result<void> try_userfaultfd() {
  // The device needs only its file's permissions; the system call a privilege or a sysctl.
  if (const auto device = open_file("/dev/userfaultfd", O_RDWR, "device")) {
    return {};
  }
  const UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd) {
    return fail_errno(errno, "userfaultfd");
  }
  return {};
}

const char* mark_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kGood:
      return "good   ";
    case Verdict::kLimited:
      return "limited";
    case Verdict::kBad:
      return "BAD    ";
  }
  return "";
}

}  // namespace

HostView this_host() {
  HostView host;
  host.check_kvm = []() -> Result<std::vector<std::string>> {
    MAYFLY_TRY_ASSIGN(const Kvm kvm, Kvm::open());
    return std::vector<std::string>(kvm.warnings().begin(), kvm.warnings().end());
  };
  host.check_userfaultfd = try_userfaultfd;
  host.kvm_is_hardware = [] { return classify_host(read_host_facts()) == HostKind::kHardware; };
  return host;
}

std::vector<Finding> examine(const HostView& host) {
  std::vector<Finding> findings;
  utsname names = {};
  if (::uname(&names) == 0) {
    findings.push_back({Verdict::kGood, "host kernel", std::string(names.sysname) + " " + names.release, ""});
  }
  findings.push_back(processor(host));
  for (Finding& finding : kvm(host)) {
    findings.push_back(std::move(finding));
  }
  findings.push_back(tun(host));
  findings.push_back(huge_pages(host));
  findings.push_back(transparent_huge_pages(host));
  findings.push_back(control_groups(host));
  findings.push_back(user_fault_fd(host));
  return findings;
}

std::string report(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) {
    text.append(mark_of(finding.verdict))
        .append("  ")
        .append(finding.subject)
        .append(": ")
        .append(finding.detail)
        .append("\n");
    if (!finding.advice.empty()) {
      text.append("         -> ").append(finding.advice).append("\n");
    }
  }
  text.append(can_run(findings) ? "This host can run microVMs.\n" : "This host cannot run microVMs yet.\n");
  return text;
}

bool can_run(const std::vector<Finding>& findings) {
  return std::none_of(findings.begin(), findings.end(),
                      [](const Finding& finding) { return finding.verdict == Verdict::kBad; });
}

}  // namespace mayfly
