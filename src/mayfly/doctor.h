// What this host can do for microVMs, and what to do about what it cannot.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace mayfly {

enum class Verdict : std::uint8_t {
  kGood,
  kLimited,  // microVMs run, without something
  kBad,      // microVMs do not run
};

struct Finding {
  Verdict verdict;
  std::string subject;  // "KVM device"
  std::string detail;   // what was found
  std::string advice;   // what to do about it; empty where there is nothing to do
};

// Where the doctor looks: the host, or a test's stand-in for one.
struct HostView {
  std::string root;  // put before /proc, /sys and /dev; empty: the host
  std::function<Result<std::vector<std::string>>()> check_kvm;  // warnings, or why KVM cannot be used
  std::function<Result<void>()> check_userfaultfd;
  std::function<bool()> kvm_is_hardware;
};

// The host as this process sees it.
HostView this_host();

std::vector<Finding> examine(const HostView& host);

// One line a finding, the advice indented below it; ends with a summary.
std::string report(const std::vector<Finding>& findings);

// False where any finding is kBad.
bool can_run(const std::vector<Finding>& findings);

}  // namespace mayfly
