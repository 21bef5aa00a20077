#include "vmm/kvm_cpu.h"

#include <variant>

#include "base/log.h"

namespace mayfly {
namespace {

// Parts into which KVM can split one access, and more: its emulator leaves a string instruction every 1,024
// elements at the latest, so that only a KVM that ignores the wish to stay out of the guest reaches this.
constexpr int kMostParts = 4096;

}  // namespace

std::optional<Outcome> KvmCpu::run_once() noexcept {
  const auto exit = vcpu_.run();
  if (trace_ != nullptr && !first_exit_seen_) {
    first_exit_seen_ = true;
    trace_->mark("first exit");
  }
  if (!exit) {
    return exits_.failed(exit.error().message());
  }
  return exits_.handle(*exit);
}

std::optional<Outcome> KvmCpu::settle() noexcept {
  for (int part = 0; part < kMostParts; ++part) {
    const auto exit = vcpu_.complete_pending_access();
    if (!exit) {
      return exits_.failed(exit.error().message());
    }
    if (std::holds_alternative<Interrupted>(*exit)) {
      return std::nullopt;
    }
    if (auto outcome = exits_.handle(*exit)) {
      return outcome;
    }
  }
  return exits_.failed("an access to a device does not come to its end");
}

void KvmCpu::want_exit(bool wanted) noexcept {
  if (wanted) {
    vcpu_.request_exit();
  } else {
    vcpu_.clear_exit_request();
  }
}

}  // namespace mayfly
