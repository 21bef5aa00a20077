#include "kvm/vcpu_exit.h"

#include <linux/kvm.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "kvm/vcpu.h"

namespace mayfly {
namespace {

// Newer than the oldest header this is built with (api.rst 5, KVM_EXIT_MEMORY_FAULT).
constexpr std::uint32_t kExitMemoryFault = 39;
struct MemoryFaultLayout {
  __u64 flags;
  __u64 gpa;
  __u64 size;
};

Result<VcpuExit> decode_port(kvm_run& run, std::size_t area_size) {
  const auto io = run.io;
  const std::uint64_t length = std::uint64_t{io.size} * io.count;
  if (io.data_offset > area_size || length > area_size - io.data_offset || io.size == 0) {
    return fail(ErrorCode::kInternal, "KVM_EXIT_IO: the data lies outside the vCPU's shared area");
  }
  // SAFETY: bytes of the mapped area, checked above; uint8_t may alias anything.
  auto* bytes = reinterpret_cast<std::uint8_t*>(&run) + io.data_offset;
  const std::span<std::uint8_t> data(bytes, length);
  if (io.direction == KVM_EXIT_IO_IN) {
    return PortRead{io.port, io.size, io.count, data};
  }
  return PortWrite{io.port, io.size, io.count, data};
}

Result<VcpuExit> decode_mmio(kvm_run& run) {
  const std::uint32_t length = run.mmio.len;
  if (length == 0 || length > sizeof(run.mmio.data)) {
    return fail(ErrorCode::kInternal, "KVM_EXIT_MMIO: an access of " + std::to_string(length) + " bytes");
  }
  const std::span<std::uint8_t> data(run.mmio.data, length);
  if (run.mmio.is_write != 0) {
    return MmioWrite{run.mmio.phys_addr, data};
  }
  return MmioRead{run.mmio.phys_addr, data};
}

InternalError decode_internal_error(const kvm_run& run) {
  InternalError error{};
  error.suberror = run.internal.suberror;
  error.data_count = std::min<std::uint32_t>(run.internal.ndata, error.data.size());
  std::copy_n(run.internal.data, error.data_count, error.data.begin());
  return error;
}

}  // namespace

Result<VcpuExit> decode_exit(kvm_run& run, std::size_t area_size) {
  switch (run.exit_reason) {
    case KVM_EXIT_IO:
      return decode_port(run, area_size);
    case KVM_EXIT_MMIO:
      return decode_mmio(run);
    case KVM_EXIT_INTR:
      return Interrupted{};
    case KVM_EXIT_HLT:
      return Halted{};
    case KVM_EXIT_SHUTDOWN:
      return GuestShutdown{};
    case KVM_EXIT_SYSTEM_EVENT:
      return SystemEvent{run.system_event.type};
    case KVM_EXIT_INTERNAL_ERROR:
      return decode_internal_error(run);
    case KVM_EXIT_FAIL_ENTRY:
      return EntryFailed{run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu};
    case kExitMemoryFault: {
      MemoryFaultLayout fault{};
      std::memcpy(&fault, run.padding, sizeof fault);
      return MemoryFaulted{fault.flags, fault.gpa, fault.size};
    }
    default:
      return OtherExit{run.exit_reason};
  }
}

std::string_view exit_reason_name(std::uint32_t reason) {
  // In the order of their numbers, <linux/kvm.h>.
  static constexpr std::array<std::string_view, 40> kNames = {
      "KVM_EXIT_UNKNOWN",
      "KVM_EXIT_EXCEPTION",
      "KVM_EXIT_IO",
      "KVM_EXIT_HYPERCALL",
      "KVM_EXIT_DEBUG",
      "KVM_EXIT_HLT",
      "KVM_EXIT_MMIO",
      "KVM_EXIT_IRQ_WINDOW_OPEN",
      "KVM_EXIT_SHUTDOWN",
      "KVM_EXIT_FAIL_ENTRY",
      "KVM_EXIT_INTR",
      "KVM_EXIT_SET_TPR",
      "KVM_EXIT_TPR_ACCESS",
      "KVM_EXIT_S390_SIEIC",
      "KVM_EXIT_S390_RESET",
      "KVM_EXIT_DCR",
      "KVM_EXIT_NMI",
      "KVM_EXIT_INTERNAL_ERROR",
      "KVM_EXIT_OSI",
      "KVM_EXIT_PAPR_HCALL",
      "KVM_EXIT_S390_UCONTROL",
      "KVM_EXIT_WATCHDOG",
      "KVM_EXIT_S390_TSCH",
      "KVM_EXIT_EPR",
      "KVM_EXIT_SYSTEM_EVENT",
      "KVM_EXIT_S390_STSI",
      "KVM_EXIT_IOAPIC_EOI",
      "KVM_EXIT_HYPERV",
      "KVM_EXIT_ARM_NISV",
      "KVM_EXIT_X86_RDMSR",
      "KVM_EXIT_X86_WRMSR",
      "KVM_EXIT_DIRTY_RING_FULL",
      "KVM_EXIT_AP_RESET_HOLD",
      "KVM_EXIT_X86_BUS_LOCK",
      "KVM_EXIT_XEN",
      "KVM_EXIT_RISCV_SBI",
      "KVM_EXIT_RISCV_CSR",
      "KVM_EXIT_NOTIFY",
      "KVM_EXIT_LOONGARCH_IOCSR",
      "KVM_EXIT_MEMORY_FAULT",
  };
  return reason < kNames.size() ? kNames[reason] : "KVM_EXIT_?";
}

std::string_view internal_error_name(std::uint32_t suberror) {
  switch (suberror) {
    case KVM_INTERNAL_ERROR_EMULATION:
      return "KVM_INTERNAL_ERROR_EMULATION";
    case KVM_INTERNAL_ERROR_SIMUL_EX:
      return "KVM_INTERNAL_ERROR_SIMUL_EX";
    case KVM_INTERNAL_ERROR_DELIVERY_EV:
      return "KVM_INTERNAL_ERROR_DELIVERY_EV";
    case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON:
      return "KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON";
    default:
      return "KVM_INTERNAL_ERROR_?";
  }
}

}  // namespace mayfly
