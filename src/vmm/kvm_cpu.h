// A KVM vCPU as a vCPU thread drives it: every exit reason with its outcome.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "devices/bus/bus.h"
#include "kvm/vcpu.h"
#include "vmm/boot_trace.h"
#include "vmm/guest_cpu.h"

namespace mayfly {

// The address spaces that a vCPU's exits reach. Borrowed; complete before the first run.
struct CpuBuses {
  const Bus& ports;
  const Bus& mmio;
};

// What each exit of KVM_RUN (api.rst section 5) leads to:
//   KVM_EXIT_IO, KVM_EXIT_MMIO      the bus; what nobody answers reads as all ones, is counted and logged
//   with a limit KVM_EXIT_INTR, EINTR, EAGAIN    nothing KVM_EXIT_SYSTEM_EVENT           RESET and SHUTDOWN
//   as the guest's own reset and power-off, CRASH as its crash,
//                                   others are logged and ignored
//   KVM_EXIT_SHUTDOWN               triple fault
//   KVM_EXIT_HLT                    failure: with KVM's interrupt controller it does not occur
//   KVM_EXIT_INTERNAL_ERROR         failure, with the suberror and the instruction's bytes where KVM gives
//   them KVM_EXIT_FAIL_ENTRY             failure, with the hardware's reason KVM_EXIT_MEMORY_FAULT, EFAULT
//   failure: guest memory cannot be had any other                       failure that names it
class KvmCpu final : public GuestCpu {
 public:
  // `trace` may be null.
  KvmCpu(Vcpu vcpu, CpuBuses buses, BootTrace* trace)
      : vcpu_(std::move(vcpu)), buses_(buses), trace_(trace) {}

  Vcpu& vcpu() { return vcpu_; }

  std::optional<Outcome> run_once() noexcept override;
  void settle() noexcept override;
  void want_exit(bool wanted) noexcept override;

 private:
  std::optional<Outcome> handle(const PortRead& exit);
  std::optional<Outcome> handle(const PortWrite& exit);
  std::optional<Outcome> handle(const MmioRead& exit);
  std::optional<Outcome> handle(const MmioWrite& exit);
  std::optional<Outcome> handle(const Interrupted& exit);
  std::optional<Outcome> handle(const Halted& exit);
  std::optional<Outcome> handle(const GuestShutdown& exit);
  std::optional<Outcome> handle(const SystemEvent& exit);
  std::optional<Outcome> handle(const InternalError& exit);
  std::optional<Outcome> handle(const EntryFailed& exit);
  std::optional<Outcome> handle(const MemoryFaulted& exit);
  std::optional<Outcome> handle(const OtherExit& exit);
  Outcome failed(std::string why) const;
  std::string name() const;

  Vcpu vcpu_;
  CpuBuses buses_;
  BootTrace* trace_;
  bool first_exit_seen_ = false;
};

}  // namespace mayfly
