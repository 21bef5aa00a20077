#include "vmm/exit_handler.h"

#include <linux/kvm.h>

#include <array>
#include <cstdio>
#include <utility>
#include <variant>

#include "base/log.h"
#include "base/metrics.h"

namespace mayfly {

ExitHandler::ExitHandler(std::uint32_t vcpu_id, CpuBuses buses)
    : name_("vCPU " + std::to_string(vcpu_id)), buses_(buses) {}

std::optional<Outcome> ExitHandler::handle(const VcpuExit& exit) const {
  return std::visit([this](const auto& reason) { return on(reason); }, exit);
}

std::optional<Outcome> ExitHandler::on(const PortRead& exit) const {
  const ScopedLatency timed(metrics().vcpu.exit_io_in_agg);
  metrics().vcpu.exit_io_in.add();
  for (std::size_t i = 0; i < exit.count; ++i) {
    if (!buses_.ports.read(exit.port, exit.data.subspan(i * exit.size, exit.size))) {
      metrics().vmm.unknown_port_accesses.add();
      LOG_INFO_LIMITED("%s: read of port 0x%x (%u bytes): no device", name_.c_str(), exit.port, exit.size);
    }
  }
  return std::nullopt;
}

std::optional<Outcome> ExitHandler::on(const PortWrite& exit) const {
  const ScopedLatency timed(metrics().vcpu.exit_io_out_agg);
  metrics().vcpu.exit_io_out.add();
  for (std::size_t i = 0; i < exit.count; ++i) {
    if (!buses_.ports.write(exit.port, exit.data.subspan(i * exit.size, exit.size))) {
      metrics().vmm.unknown_port_accesses.add();
      LOG_INFO_LIMITED("%s: write to port 0x%x (%u bytes): no device", name_.c_str(), exit.port, exit.size);
    }
  }
  return power_outcome();
}

std::optional<Outcome> ExitHandler::power_outcome() const {
  const auto event = buses_.power == nullptr ? std::nullopt : buses_.power->requested();
  if (!event) {
    return std::nullopt;
  }
  return *event == PowerEvent::kReset ? Outcome{OutcomeKind::kGuestReset, "the guest asked for a reset"}
                                      : Outcome{OutcomeKind::kGuestPowerOff, "the guest asked for power-off"};
}

std::optional<Outcome> ExitHandler::on(const MmioRead& exit) const {
  const ScopedLatency timed(metrics().vcpu.exit_mmio_read_agg);
  metrics().vcpu.exit_mmio_read.add();
  if (!buses_.mmio.read(exit.address, exit.data)) {
    metrics().vmm.unknown_mmio_accesses.add();
    LOG_INFO_LIMITED("%s: read of address 0x%llx (%zu bytes): no device", name_.c_str(),
                     static_cast<unsigned long long>(exit.address), exit.data.size());
  }
  return std::nullopt;
}

std::optional<Outcome> ExitHandler::on(const MmioWrite& exit) const {
  const ScopedLatency timed(metrics().vcpu.exit_mmio_write_agg);
  metrics().vcpu.exit_mmio_write.add();
  if (!buses_.mmio.write(exit.address, exit.data)) {
    metrics().vmm.unknown_mmio_accesses.add();
    LOG_INFO_LIMITED("%s: write to address 0x%llx (%zu bytes): no device", name_.c_str(),
                     static_cast<unsigned long long>(exit.address), exit.data.size());
  }
  return std::nullopt;
}

std::optional<Outcome> ExitHandler::on(const Interrupted&) const {
  return std::nullopt;
}

std::optional<Outcome> ExitHandler::on(const Halted&) const {
  return failed("KVM_EXIT_HLT, although the interrupt controller is in the kernel");
}

std::optional<Outcome> ExitHandler::on(const GuestShutdown&) const {
  return Outcome{OutcomeKind::kTripleFault, name_ + " shut down on a triple fault"};
}

std::optional<Outcome> ExitHandler::on(const SystemEvent& exit) const {
  switch (exit.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
      return Outcome{OutcomeKind::kGuestPowerOff, name_ + ": KVM_SYSTEM_EVENT_SHUTDOWN"};
    case KVM_SYSTEM_EVENT_RESET:
      return Outcome{OutcomeKind::kGuestReset, name_ + ": KVM_SYSTEM_EVENT_RESET"};
    case KVM_SYSTEM_EVENT_CRASH:
      return Outcome{OutcomeKind::kGuestCrash, name_ + ": KVM_SYSTEM_EVENT_CRASH"};
    default:
      LOG_WARN_LIMITED("%s: system event %u ignored", name_.c_str(), exit.type);
      return std::nullopt;
  }
}

std::optional<Outcome> ExitHandler::on(const InternalError& exit) const {
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

std::optional<Outcome> ExitHandler::on(const EntryFailed& exit) const {
  std::array<char, 96> text;
  std::snprintf(text.data(), text.size(), "KVM_EXIT_FAIL_ENTRY, hardware reason 0x%llx on processor %u",
                static_cast<unsigned long long>(exit.hardware_reason), exit.cpu);
  return failed(text.data());
}

std::optional<Outcome> ExitHandler::on(const MemoryFaulted& exit) const {
  std::array<char, 96> text;
  std::snprintf(text.data(), text.size(), "KVM_EXIT_MEMORY_FAULT, %llu bytes at 0x%llx",
                static_cast<unsigned long long>(exit.size), static_cast<unsigned long long>(exit.address));
  return failed(text.data());
}

std::optional<Outcome> ExitHandler::on(const OtherExit& exit) const {
  return failed("unexpected " + std::string(exit_reason_name(exit.reason)) + " (" +
                std::to_string(exit.reason) + ")");
}

Outcome ExitHandler::failed(std::string why) const {
  metrics().vcpu.failures.add();
  return Outcome{OutcomeKind::kVcpuFailed, name_ + ": " + std::move(why)};
}

}  // namespace mayfly
