#include "vmm/kvm_cpu.h"

#include <linux/kvm.h>

#include <cstdio>
#include <utility>
#include <variant>

#include "base/log.h"
#include "base/metrics.h"

namespace mayfly {

std::optional<Outcome> KvmCpu::run_once() noexcept {
  auto exit = vcpu_.run();
  if (trace_ != nullptr && !first_exit_seen_) {
    first_exit_seen_ = true;
    trace_->mark("first exit");
  }
  if (!exit) {
    return failed(exit.error().message());
  }
  return std::visit([this](const auto& reason) { return handle(reason); }, *exit);
}

void KvmCpu::settle() noexcept {
  if (auto done = vcpu_.complete_pending_access(); !done) {
    LOG_ERROR("%s: %s", name().c_str(), done.error().message().c_str());
  }
}

void KvmCpu::want_exit(bool wanted) noexcept {
  if (wanted) {
    vcpu_.request_exit();
  } else {
    vcpu_.clear_exit_request();
  }
}

std::optional<Outcome> KvmCpu::handle(const PortRead& exit) {
  const ScopedLatency timed(metrics().vcpu.exit_io_in_agg);
  metrics().vcpu.exit_io_in.add();
  for (std::size_t i = 0; i < exit.count; ++i) {
    if (!buses_.ports.read(exit.port, exit.data.subspan(i * exit.size, exit.size))) {
      metrics().vmm.unknown_port_accesses.add();
      LOG_INFO_LIMITED("%s: read of port 0x%x (%u bytes): no device", name().c_str(), exit.port, exit.size);
    }
  }
  return std::nullopt;
}

std::optional<Outcome> KvmCpu::handle(const PortWrite& exit) {
  const ScopedLatency timed(metrics().vcpu.exit_io_out_agg);
  metrics().vcpu.exit_io_out.add();
  for (std::size_t i = 0; i < exit.count; ++i) {
    if (!buses_.ports.write(exit.port, exit.data.subspan(i * exit.size, exit.size))) {
      metrics().vmm.unknown_port_accesses.add();
      LOG_INFO_LIMITED("%s: write to port 0x%x (%u bytes): no device", name().c_str(), exit.port, exit.size);
    }
  }
  return std::nullopt;
}

std::optional<Outcome> KvmCpu::handle(const MmioRead& exit) {
  const ScopedLatency timed(metrics().vcpu.exit_mmio_read_agg);
  metrics().vcpu.exit_mmio_read.add();
  if (!buses_.mmio.read(exit.address, exit.data)) {
    metrics().vmm.unknown_mmio_accesses.add();
    LOG_INFO_LIMITED("%s: read of address 0x%llx (%zu bytes): no device", name().c_str(),
                     static_cast<unsigned long long>(exit.address), exit.data.size());
  }
  return std::nullopt;
}

std::optional<Outcome> KvmCpu::handle(const MmioWrite& exit) {
  const ScopedLatency timed(metrics().vcpu.exit_mmio_write_agg);
  metrics().vcpu.exit_mmio_write.add();
  if (!buses_.mmio.write(exit.address, exit.data)) {
    metrics().vmm.unknown_mmio_accesses.add();
    LOG_INFO_LIMITED("%s: write to address 0x%llx (%zu bytes): no device", name().c_str(),
                     static_cast<unsigned long long>(exit.address), exit.data.size());
  }
  return std::nullopt;
}

std::optional<Outcome> KvmCpu::handle(const Interrupted&) {
  return std::nullopt;
}

std::optional<Outcome> KvmCpu::handle(const Halted&) {
  return failed("KVM_EXIT_HLT, although the interrupt controller is in the kernel");
}

std::optional<Outcome> KvmCpu::handle(const GuestShutdown&) {
  return Outcome{OutcomeKind::kTripleFault, name() + " shut down on a triple fault"};
}

std::optional<Outcome> KvmCpu::handle(const SystemEvent& exit) {
  switch (exit.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
      return Outcome{OutcomeKind::kGuestPowerOff, name() + ": KVM_SYSTEM_EVENT_SHUTDOWN"};
    case KVM_SYSTEM_EVENT_RESET:
      return Outcome{OutcomeKind::kGuestReset, name() + ": KVM_SYSTEM_EVENT_RESET"};
    case KVM_SYSTEM_EVENT_CRASH:
      return Outcome{OutcomeKind::kGuestCrash, name() + ": KVM_SYSTEM_EVENT_CRASH"};
    default:
      LOG_WARN_LIMITED("%s: system event %u ignored", name().c_str(), exit.type);
      return std::nullopt;
  }
}

std::optional<Outcome> KvmCpu::handle(const InternalError& exit) {
  std::string why = "KVM_EXIT_INTERNAL_ERROR, ";
  why.append(internal_error_name(exit.suberror))
      .append(" (")
      .append(std::to_string(exit.suberror))
      .append(")");
  for (std::uint32_t i = 0; i < exit.data_count; ++i) {
    std::array<char, 24> text;
    std::snprintf(text.data(), text.size(), "%s0x%llx", i == 0 ? ", data " : " ",
                  static_cast<unsigned long long>(exit.data.at(i)));
    why.append(text.data());
  }
  return failed(std::move(why));
}

std::optional<Outcome> KvmCpu::handle(const EntryFailed& exit) {
  std::array<char, 96> text;
  std::snprintf(text.data(), text.size(), "KVM_EXIT_FAIL_ENTRY, hardware reason 0x%llx on processor %u",
                static_cast<unsigned long long>(exit.hardware_reason), exit.cpu);
  return failed(text.data());
}

std::optional<Outcome> KvmCpu::handle(const MemoryFaulted& exit) {
  std::array<char, 96> text;
  std::snprintf(text.data(), text.size(), "KVM_EXIT_MEMORY_FAULT at 0x%llx",
                static_cast<unsigned long long>(exit.address));
  return failed(text.data());
}

std::optional<Outcome> KvmCpu::handle(const OtherExit& exit) {
  return failed("unexpected " + std::string(exit_reason_name(exit.reason)) + " (" +
                std::to_string(exit.reason) + ")");
}

Outcome KvmCpu::failed(std::string why) const {
  metrics().vcpu.failures.add();
  return Outcome{OutcomeKind::kVcpuFailed, name() + ": " + std::move(why)};
}

std::string KvmCpu::name() const {
  return "vCPU " + std::to_string(vcpu_.id());
}

}  // namespace mayfly
