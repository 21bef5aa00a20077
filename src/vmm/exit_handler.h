// What each exit of a vCPU leads to.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "devices/bus/bus.h"
#include "devices/power/power_line.h"
#include "kvm/vcpu_exit.h"
#include "vmm/outcome.h"

namespace mayfly {

// The address spaces that a vCPU's exits reach. Borrowed; complete before the first run.
struct CpuBuses {
  const Bus& ports;
  const Bus& mmio;
  // Where the guest's wish to end is known; null: nowhere.
  const PowerLine* power = nullptr;
};

// The exits of KVM_RUN (api.rst section 5) and what they lead to:
// - KVM_EXIT_IO, KVM_EXIT_MMIO: the bus, a string instruction element by element. What nobody answers reads
//   as all ones, is counted, and is logged with a limit. A write by which the guest ended itself ends the
//   vCPU.
// - KVM_EXIT_INTR, EINTR, EAGAIN: nothing.
// - KVM_EXIT_SYSTEM_EVENT: RESET and SHUTDOWN are the guest's own reset and power-off, CRASH is its crash;
//   others are logged with a limit and ignored.
// - KVM_EXIT_SHUTDOWN: triple fault.
// - KVM_EXIT_HLT: failure. With KVM's interrupt controller it does not occur.
// - KVM_EXIT_INTERNAL_ERROR: failure, with the suberror and the data that KVM gives, such as the
//   instruction's bytes.
// - KVM_EXIT_FAIL_ENTRY: failure, with the hardware's reason.
// - KVM_EXIT_MEMORY_FAULT, EFAULT: failure: guest memory cannot be had.
// - any other: failure that names it.
//
// Everything in an exit is the guest's choice. Thread-safe as far as the devices on the buses are.
class ExitHandler {
 public:
  ExitHandler(std::uint32_t vcpu_id, CpuBuses buses);

  // Nothing: the guest goes on. Fills the data of a read.
  std::optional<Outcome> handle(const VcpuExit& exit) const;

  // The failure of this vCPU, counted as one; `why` is a clause.
  Outcome failed(std::string why) const;

 private:
  std::optional<Outcome> on(const PortRead& exit) const;
  std::optional<Outcome> on(const PortWrite& exit) const;
  std::optional<Outcome> on(const MmioRead& exit) const;
  std::optional<Outcome> on(const MmioWrite& exit) const;
  std::optional<Outcome> on(const Interrupted& exit) const;
  std::optional<Outcome> on(const Halted& exit) const;
  std::optional<Outcome> on(const GuestShutdown& exit) const;
  std::optional<Outcome> on(const SystemEvent& exit) const;
  std::optional<Outcome> on(const InternalError& exit) const;
  std::optional<Outcome> on(const EntryFailed& exit) const;
  std::optional<Outcome> on(const MemoryFaulted& exit) const;
  std::optional<Outcome> on(const OtherExit& exit) const;

  // How the guest has asked to end, if it has.
  std::optional<Outcome> power_outcome() const;

  const std::string name_;  // "vCPU 3"
  const CpuBuses buses_;
};

}  // namespace mayfly
