// A KVM vCPU as a vCPU thread drives it.
#pragma once

#include <optional>
#include <utility>

#include "kvm/vcpu.h"
#include "vmm/boot_trace.h"
#include "vmm/exit_handler.h"
#include "vmm/guest_cpu.h"

namespace mayfly {

// Couples a Vcpu with what its exits lead to (vmm/exit_handler.h). A failed KVM_RUN is a failure of the vCPU.
class KvmCpu final : public GuestCpu {
 public:
  // `trace` may be null.
  KvmCpu(Vcpu vcpu, CpuBuses buses, BootTrace* trace)
      : vcpu_(std::move(vcpu)), exits_(vcpu_.id(), buses), trace_(trace) {}

  Vcpu& vcpu() { return vcpu_; }

  std::optional<Outcome> run_once() noexcept override;
  std::optional<Outcome> settle() noexcept override;
  void want_exit(bool wanted) noexcept override;

 private:
  Vcpu vcpu_;
  const ExitHandler exits_;
  BootTrace* trace_;
  bool first_exit_seen_ = false;
};

}  // namespace mayfly
