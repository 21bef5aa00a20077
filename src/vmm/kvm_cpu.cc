#include "vmm/kvm_cpu.h"

#include "base/log.h"

namespace mayfly {

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

void KvmCpu::settle() noexcept {
  if (auto done = vcpu_.complete_pending_access(); !done) {
    LOG_ERROR("vCPU %u: %s", vcpu_.id(), done.error().message().c_str());
  }
}

void KvmCpu::want_exit(bool wanted) noexcept {
  if (wanted) {
    vcpu_.request_exit();
  } else {
    vcpu_.clear_exit_request();
  }
}

}  // namespace mayfly
