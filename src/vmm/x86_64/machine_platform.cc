// The parts of the machine that only x86-64 has.
#include <algorithm>
#include <bit>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "boot/x86_64/layout.h"
#include "devices/virtio/transport/mmio_transport.h"
#include "devices/vmgenid/vmgenid.h"
#include "kvm/x86_64/apply_template.h"
#include "kvm/x86_64/cpuid.h"
#include "kvm/x86_64/io_apic.h"
#include "kvm/x86_64/msrs.h"
#include "kvm/x86_64/saved_state.h"
#include "kvm/x86_64/vcpu_state.h"
#include "memory/x86_64/ranges.h"
#include "vmm/arch.h"
#include "vmm/machine.h"

namespace mayfly {

static_assert(kMaxVirtioDevices <= x86_64::layout::kMaxVirtioDevices, "every device has a window and a line");
static_assert(kMaxVcpus <= x86_64::layout::kMaxVcpus, "the guest's tables have room for every vCPU");

namespace {

// How many bits of physical address the guest's memory takes, and everything below 4 GiB, where devices lie.
Result<unsigned> memory_address_bits(const MachineConfig& machine) {
  MAYFLY_TRY_ASSIGN(const auto ranges, x86_64::memory_ranges(machine.mem_size_mib << 20));
  return std::max(32U, static_cast<unsigned>(std::bit_width(ranges.back().last().value())));
}

}  // namespace

Result<std::vector<GuestRange>> guest_memory_ranges(std::uint64_t size) {
  return x86_64::memory_ranges(size);
}

Result<void> MachineConfig::check_address_bits(unsigned (*bits)()) const {
  MAYFLY_TRY_ASSIGN(const auto ranges, x86_64::memory_ranges(mem_size_mib << 20));
  const std::uint64_t last = ranges.back().last().value();
  if (last < x86_64::kMmioGapEnd) {
    return {};
  }
  const unsigned width = bits();
  if (static_cast<unsigned>(std::bit_width(last)) <= width) {
    return {};
  }
  const std::uint64_t gap_mib = (x86_64::kMmioGapEnd - x86_64::kMmioGapStart) >> 20;
  const std::uint64_t most = std::max((std::uint64_t{1} << width) >> 20, x86_64::kMmioGapEnd >> 20) - gap_mib;
  return fail(ErrorCode::kInvalidArgument, "mem_size_mib " + std::to_string(mem_size_mib) +
                                               " (--memory): must be at most " + std::to_string(most) +
                                               " on this host, whose processor has " + std::to_string(width) +
                                               " bits of physical address");
}

GuestAddress vm_gen_id_page() {
  static_assert(x86_64::layout::kVmGenIdPage >= x86_64::layout::kSystemAreaStart &&
                    x86_64::layout::kVmGenIdPage + kGenerationPageSize <= x86_64::layout::kRsdp,
                "in the reserved area, before the tables");
  return GuestAddress(x86_64::layout::kVmGenIdPage);
}

Result<Vm> create_platform_vm(std::optional<Vm> empty, const Kvm& kvm, const GuestMemory& memory,
                              std::span<const std::uint32_t> virtio, bool timer) {
  static_assert(x86_64::layout::kVirtioMmioWindow == MmioTransport::kWindow, "they lie without gaps");
  VmOptions options{.timer = timer};
  if (const auto range =
          GuestRange::make(GuestAddress(x86_64::layout::kVirtioMmioStart), virtio.size_bytes())) {
    options.read_only = ReadOnlyPages{*range, virtio.data()};
  }
  if (!empty) {
    MAYFLY_TRY_ASSIGN(empty, kvm.create_empty_vm());
  }
  return kvm.complete_vm(std::move(*empty), memory.regions(), options);
}

Result<arch::SupportedProcessor> supported_processor(const Kvm& kvm) {
  return x86_64::supported_cpuid(kvm);
}

tl::expected<Processor, BuildError> choose_processor(const Kvm& kvm,
                                                     const arch::SupportedProcessor& supported,
                                                     const VmConfig& config) {
  MAYFLY_TRY_ASSIGN(auto cpuid,
                    x86_64::make_guest_cpuid(
                        supported, {.vcpu_count = config.machine.vcpu_count,
                                    .smt = config.machine.smt,
                                    .tsc_deadline = kvm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0}));
  std::vector<x86_64::MsrChange> msrs;
  if (config.cpu_template) {
    MAYFLY_TRY_ASSIGN(const unsigned least_bits, memory_address_bits(config.machine));
    MAYFLY_TRY_ASSIGN(auto templated,
                      x86_64::apply_cpuid_changes(cpuid, supported, config.cpu_template->cpuid, least_bits)
                          .map_error(of_cpu_config));
    for (const std::string& warning : templated.warnings) {
      LOG_WARN("cpu-config: %s", warning.c_str());
    }
    cpuid = std::move(templated.entries);
    msrs = config.cpu_template->msrs;
  }
  MAYFLY_TRY_ASSIGN(const auto saving, x86_64::vcpu_saving(kvm));
  Processor processor;
  processor.save = [cpuid, saving](const Vcpu& vcpu) mutable {
    x86_64::set_vcpu_id(cpuid, vcpu.id());
    return x86_64::save_vcpu(vcpu, saving, cpuid);
  };
  processor.set_up = [cpuid = std::move(cpuid), msrs = std::move(msrs),
                      has_template = config.cpu_template.has_value()](
                         const Vcpu& vcpu) mutable -> tl::expected<void, BuildError> {
    // CPUID before MSRs: from Linux 6.13 on KVM refuses MSRs that the CPUID it knows does not have.
    x86_64::set_vcpu_id(cpuid, vcpu.id());
    if (auto set = x86_64::set_cpuid(vcpu, cpuid); !set) {
      // Without a template KVM is given what it has said itself.
      return tl::make_unexpected(has_template ? of_cpu_config(set.error()) : BuildError(set.error()));
    }
    const auto set_msrs = [&vcpu](std::span<const kvm_msr_entry> entries) {
      return x86_64::set_msrs(vcpu, entries);
    };
    MAYFLY_TRY_ASSIGN(const auto refused, x86_64::set_msrs_that_exist(x86_64::boot_msrs(), set_msrs));
    for (const std::uint32_t msr : refused) {
      LOG_WARN("vCPU %u: this KVM does not take %s: left as it is", vcpu.id(), x86_64::msr_name(msr).c_str());
    }
    MAYFLY_TRY(
        x86_64::apply_msr_changes(
            msrs, [&vcpu](std::span<const std::uint32_t> indices) { return x86_64::get_msrs(vcpu, indices); },
            set_msrs)
            .map_error(of_cpu_config));
    MAYFLY_TRY(x86_64::connect_local_interrupts(vcpu));
    return {};
  };
  return processor;
}

Result<Processor> restore_processor(const Kvm& kvm, const arch::SupportedProcessor& supported,
                                    std::vector<arch::VcpuState> saved) {
  for (const x86_64::VcpuState& vcpu : saved) {
    MAYFLY_TRY(x86_64::check_cpuid_fits(vcpu.cpuid, supported));
  }
  MAYFLY_TRY_ASSIGN(const auto saving, x86_64::vcpu_saving(kvm));
  std::vector<std::vector<kvm_cpuid_entry2>> cpuids;
  cpuids.reserve(saved.size());
  for (const x86_64::VcpuState& vcpu : saved) {
    cpuids.push_back(vcpu.cpuid);
  }
  Processor processor;
  processor.save = [cpuids = std::move(cpuids), saving](const Vcpu& vcpu) {
    return x86_64::save_vcpu(vcpu, saving, cpuids.at(vcpu.id()));
  };
  // Both need them, and functions are copied.
  const auto states = std::make_shared<const std::vector<arch::VcpuState>>(std::move(saved));
  processor.prepare = [states, size = saving.xsave_size](const Vcpu& vcpu) {
    return x86_64::restore_timeless(vcpu, states->at(vcpu.id()), size);
  };
  processor.set_up = [states](const Vcpu& vcpu) -> tl::expected<void, BuildError> {
    MAYFLY_TRY(x86_64::restore_timed(vcpu, states->at(vcpu.id())));
    return {};
  };
  return processor;
}

Result<void> Machine::connect_devices() {
  namespace layout = x86_64::layout;
  MAYFLY_TRY(platform_.vm.register_irqfd(serial_line_.event(), layout::kSerialIrq));
  MAYFLY_TRY(ports_.insert(layout::kSerialPort, Serial16550::kRegisterCount, serial_, "serial port"));
  MAYFLY_TRY(ports_.insert(layout::kI8042DataPort, 1, i8042_.data_port(), "i8042 data port"));
  MAYFLY_TRY(ports_.insert(layout::kI8042CommandPort, 1, i8042_.command_port(), "i8042 command port"));
  MAYFLY_TRY(ports_.insert(layout::kPowerPort, PowerDevice::kSize, power_, "ACPI power registers"));
  if (boot_mark_) {
    MAYFLY_TRY(mmio_.insert(layout::kBootMark, BootMark::kSize, *boot_mark_, "boot mark"));
  }
  for (std::uint32_t index = 0; index < virtio_.size(); ++index) {
    MAYFLY_TRY(connect_virtio(*virtio_[index], index));
  }
  return {};
}

Result<void> Machine::request_shutdown() {
  namespace layout = x86_64::layout;
  if (state_ != State::kRunning && state_ != State::kPaused) {
    return fail(ErrorCode::kBusy, "the microVM is not running");
  }
  // An edge on a line that nobody takes would be lost without a word.
  MAYFLY_TRY_ASSIGN(const bool taken, x86_64::guest_takes_line(platform_.vm, layout::kShutdownRequestGsi));
  if (!taken) {
    return fail(
        ErrorCode::kBusy,
        "the guest does not listen for a request to shut down: its ACPI is not up yet, or it has none");
  }
  return platform_.vm.pulse_line(layout::kShutdownRequestGsi);
}

Result<void> Machine::notify_generation_change() {
  if (state_ != State::kNotStarted && state_ != State::kPaused) {
    return fail(ErrorCode::kBusy, "the microVM is not paused");
  }
  MAYFLY_TRY_ASSIGN(const RandomId generation, make_random_id());
  // The number before the interrupt: who is told looks at once.
  MAYFLY_TRY(write_generation(memory_, vm_gen_id_page(), generation));
  return platform_.vm.pulse_line(x86_64::layout::kVmGenIdGsi);
}

Result<void> Machine::touch_ahead() {
  MAYFLY_TRY_ASSIGN(const RandomId generation, read_generation(memory_, vm_gen_id_page()));
  return write_generation(memory_, vm_gen_id_page(), generation);
}

Result<void> Machine::mark_snapshot(const RandomId& mark, const RandomId& base) {
  MAYFLY_TRY(write_snapshot_mark(memory_, vm_gen_id_page(), mark));
  return write_snapshot_base(memory_, vm_gen_id_page(), base);
}

Result<void> Machine::connect_virtio(VirtioSlot& slot, std::uint32_t index) {
  const x86_64::VirtioPlace place = x86_64::virtio_place(index);
  MAYFLY_TRY(mmio_.insert(place.base, MmioTransport::kWindow, slot.transport(), slot.device().name()));
  MAYFLY_TRY(platform_.vm.register_irqfd(slot.line().event(), place.gsi));
  // Without a length: KVM then need not decode the guest's instruction to see what it writes.
  return platform_.vm.register_doorbell(slot.transport().doorbell(),
                                        {.space = Doorbell::Space::kMmio,
                                         .address = place.base + MmioTransport::kQueueNotify,
                                         .length = 0,
                                         .value = std::nullopt});
}

}  // namespace mayfly
