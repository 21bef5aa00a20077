#include "vmm/machine.h"

#include <optional>
#include <string>
#include <utility>

#include "base/aside.h"
#include "base/check.h"
#include "base/log.h"
#include "base/metrics.h"
#include "vmm/arch.h"

namespace mayfly {
namespace {

// A step of the build, as a phase of the trace.
template <typename Step>
auto traced(BootTrace* trace, std::string_view name, Step step) {
  const TracePhase phase(trace, name);
  return step();
}

Result<GuestMemory> map_memory(const MachineConfig& config) {
  MAYFLY_TRY_ASSIGN(const auto ranges, guest_memory_ranges(config.mem_size_mib << 20));
  return GuestMemory::create(ranges, backing_of(config.huge_pages));
}

// Null where nobody asks for the mark. `trace` may be null.
std::unique_ptr<BootMark> make_boot_mark(BootTrace* trace, std::function<void()> on_mark) {
  if (trace == nullptr && !on_mark) {
    return nullptr;
  }
  return std::make_unique<BootMark>([trace, on_mark = std::move(on_mark)] {
    if (trace != nullptr) {
      trace->mark("guest boot mark");
    }
    if (on_mark) {
      on_mark();
    }
  });
}

using VcpuThreads = std::vector<std::unique_ptr<VcpuThread>>;

// Ahead of their vCPUs: they are confined while the VM is made, which is mostly waiting.
Result<VcpuThreads> start_threads(std::size_t count, const std::function<Result<void>()>& confine) {
  VcpuThreads threads;
  while (threads.size() < count) {
    MAYFLY_TRY_ASSIGN(auto thread, VcpuThread::start(static_cast<std::uint32_t>(threads.size()), confine));
    threads.push_back(std::move(thread));
  }
  return threads;
}

}  // namespace

Backing backing_of(HugePages huge_pages) {
  switch (huge_pages) {
    case HugePages::kNone:
      return Backing::kAnonymous;
    case HugePages::kTransparent:
      return Backing::kTransparentHuge;
    case HugePages::k2M:
      return Backing::kHugetlb2M;
  }
  return Backing::kAnonymous;
}

tl::expected<OpenKvm, BuildError> open_kvm(const VmConfig& config, BootTrace* trace,
                                           std::optional<OpenKvm> ahead) {
  const TracePhase phase(trace, "open KVM");
  const std::span<const CapabilityChange> capabilities =
      config.cpu_template ? config.cpu_template->capabilities : std::span<const CapabilityChange>();
  if (!ahead || !capabilities.empty()) {
    MAYFLY_TRY_ASSIGN(Kvm in_place, Kvm::open("/dev/kvm", capabilities));
    ahead.emplace(OpenKvm{.kvm = std::move(in_place)});
  }
  const Kvm& kvm = ahead->kvm;
  MAYFLY_TRY(check_required(capabilities, [&kvm](std::uint32_t number) {
               return kvm.check_extension(number);
             }).map_error(of_cpu_config));
  for (const std::string& warning : kvm.warnings()) {
    LOG_WARN("%s", warning.c_str());
  }
  if (config.machine.vcpu_count > kvm.max_vcpus()) {
    return fail(ErrorCode::kUnsupported, "vcpu_count " + std::to_string(config.machine.vcpu_count) +
                                             " (--cpus): this host's KVM allows " +
                                             std::to_string(kvm.max_vcpus()));
  }
  return std::move(*ahead);
}

void Machine::Ending::power_event(PowerEvent event) noexcept {
  if (event == PowerEvent::kReset) {
    report({OutcomeKind::kGuestReset, "the guest asked for a reset"});
  } else {
    report({OutcomeKind::kGuestPowerOff, "the guest asked for power-off"});
  }
}

void Machine::Ending::report(Outcome outcome) noexcept {
  if (!reported_.test_and_set()) {
    on_outcome_(std::move(outcome));
  }
}

void Machine::TracedConsole::transmit(std::uint8_t byte) {
  console_.transmit(byte);
  if (!sent_.test(std::memory_order_relaxed) && !sent_.test_and_set()) {
    trace_.mark("first serial byte");
  }
}

Machine::Machine(GuestMemory memory, VirtioWindows windows, Platform platform, EventLine serial_line,
                 MachineSurroundings surroundings)
    : memory_(std::move(memory)),
      windows_(std::move(windows)),
      platform_(std::move(platform)),
      dirty_log_(platform_.vm, memory_),
      registrar_(surroundings.registrar),
      trace_(surroundings.trace),
      ending_(std::move(surroundings.on_outcome)),
      power_line_(ending_),
      serial_line_(std::move(serial_line)),
      traced_console_(trace_ == nullptr ? nullptr
                                        : std::make_unique<TracedConsole>(surroundings.console, *trace_)),
      serial_(serial_line_, trace_ == nullptr ? surroundings.console : *traced_console_,
              surroundings.serial_metrics),
      i8042_(power_line_),
      power_(power_line_),
      boot_mark_(make_boot_mark(trace_, std::move(surroundings.on_boot_mark))),
      ports_("port"),
      mmio_("MMIO") {}

tl::expected<std::unique_ptr<Machine>, BuildError> Machine::build(const VmConfig& config,
                                                                  const MachineParts& parts,
                                                                  MachineSurroundings surroundings) {
  BootTrace* trace = surroundings.trace;
  const TracePhase whole(trace, "build the machine");
  MAYFLY_TRY(config.machine.validate().map_error(BuildError::of_configuration));
  MAYFLY_TRY(
      config.machine.check_address_bits(surroundings.address_bits).map_error(BuildError::of_configuration));
  MAYFLY_TRY_ASSIGN(GuestMemory memory,
                    traced(trace, "map guest memory", [&] { return map_memory(config.machine); }));
  MAYFLY_TRY_ASSIGN(VirtioWindows windows, VirtioWindows::create(parts.devices.size()));
  MAYFLY_TRY_ASSIGN(VcpuThreads threads, start_threads(config.machine.vcpu_count, surroundings.confine_vcpu));
  HostKvm* const host = surroundings.host_kvm;
  MAYFLY_TRY_ASSIGN(OpenKvm opened,
                    open_kvm(config, trace, host == nullptr ? std::nullopt : host->take(trace)));
  const Kvm& kvm = opened.kvm;
  // Beside it the VM is made, which is mostly waiting for grace periods of the host's kernel and so goes
  // first: the loading fills the gaps, even on a single processor.
  Aside<Result<EnterGuest>> loader([&] {
    return traced(trace, "load guest", [&] { return load_guest(memory, config, parts.files, trace); });
  });
  auto made = traced(trace, "create VM",
                     [&] { return create_platform_vm(std::move(opened.vm), kvm, memory, windows.all()); });
  auto chosen = traced(trace, "choose CPUID", [&]() -> tl::expected<Processor, BuildError> {
    if (const auto asked = host == nullptr ? std::nullopt : host->take_supported(trace)) {
      return choose_processor(kvm, asked->supported, config);
    }
    MAYFLY_TRY_ASSIGN(const auto supported, supported_processor(kvm));
    return choose_processor(kvm, supported, config);
  });
  // What is wrong with the guest's files is said before what making the VM refuses.
  MAYFLY_TRY_ASSIGN(const EnterGuest enter_guest, traced(trace, "wait for the guest", [&] {
                      return loader.take().map_error(BuildError::of_loading);
                    }));
  MAYFLY_TRY_ASSIGN(Vm vm, std::move(made));
  MAYFLY_TRY_ASSIGN(Processor processor, std::move(chosen));
  MAYFLY_TRY_ASSIGN(EventLine serial_line, EventLine::create());

  std::unique_ptr<Machine> machine(new Machine(std::move(memory), std::move(windows),
                                               {std::move(vm), std::move(processor)}, std::move(serial_line),
                                               std::move(surroundings)));
  MAYFLY_TRY(machine->add_virtio(parts.devices));
  MAYFLY_TRY(traced(trace, "connect devices", [&] { return machine->connect_devices(); }));
  MAYFLY_TRY(traced(trace, "create vCPUs", [&] { return machine->create_cpus(std::move(threads)); }));
  MAYFLY_TRY(traced(trace, "set up vCPUs", [&] { return machine->set_up_cpus(); }));
  MAYFLY_TRY(enter_guest(machine->cpus_.front()->vcpu()));
  return machine;
}

tl::expected<std::unique_ptr<Machine>, BuildError> Machine::restore(const VmConfig& config,
                                                                    RestoreParts parts,
                                                                    MachineSurroundings surroundings) {
  BootTrace* trace = surroundings.trace;
  const TracePhase whole(trace, "restore the machine");
  MAYFLY_CHECK(parts.devices.size() == parts.queues.size(), "every device has queues");
  if (parts.state.vcpus.size() != config.machine.vcpu_count ||
      parts.state.transports.size() != parts.devices.size()) {
    return fail(ErrorCode::kInvalidArgument, "the saved state is of another number of vCPUs or devices");
  }
  MAYFLY_TRY_ASSIGN(VcpuThreads threads, start_threads(config.machine.vcpu_count, surroundings.confine_vcpu));
  const auto compare = [&](const Kvm& kvm, const arch::SupportedProcessor& supported) {
    return traced(trace, "compare CPUID",
                  [&] { return restore_processor(kvm, supported, std::move(parts.state.vcpus)); });
  };
  // That this host is another is said before what making the VM refuses.
  HostKvm* const host = surroundings.host_kvm;
  std::optional<Processor> compared;
  if (const auto asked = host == nullptr ? std::nullopt : host->take_supported(trace)) {
    MAYFLY_TRY_ASSIGN(compared, compare(asked->kvm, asked->supported));
  }
  MAYFLY_TRY_ASSIGN(OpenKvm opened, open_kvm(config, trace, traced(trace, "wait for the VM", [&] {
                                               return parts.frame->take_kvm(trace);
                                             })));
  auto made = parts.frame->take(opened, trace);
  if (!compared) {
    MAYFLY_TRY_ASSIGN(const auto supported, supported_processor(opened.kvm));
    MAYFLY_TRY_ASSIGN(compared, compare(opened.kvm, supported));
  }
  MAYFLY_TRY_ASSIGN(MachineFrame frame, std::move(made));
  frame.processor = std::move(*compared);
  frame.threads = std::move(threads);
  MAYFLY_TRY_ASSIGN(auto machine, make_ahead(std::move(frame), std::move(surroundings)));
  MAYFLY_TRY(machine->restore_ahead(parts));
  return machine;
}

Result<std::unique_ptr<Machine>> Machine::make_ahead(MachineFrame frame, MachineSurroundings surroundings) {
  MAYFLY_TRY_ASSIGN(EventLine serial_line, EventLine::create());
  if (frame.threads.empty()) {
    MAYFLY_TRY_ASSIGN(frame.threads, start_threads(frame.vcpus.size(), surroundings.confine_vcpu));
  }
  std::unique_ptr<Machine> machine(
      new Machine(std::move(frame.memory), std::move(frame.windows),
                  {std::move(frame.vm), std::move(frame.processor), std::move(frame.timer)},
                  std::move(serial_line), std::move(surroundings)));
  for (std::size_t id = 0; id < frame.vcpus.size(); ++id) {
    machine->add_cpu(std::move(frame.vcpus[id]), std::move(frame.threads.at(id)));
  }
  MAYFLY_TRY(machine->touch_ahead());
  // Beside what their threads do.
  for (const auto& cpu : machine->cpus_) {
    MAYFLY_TRY(machine->platform_.processor.prepare(cpu->vcpu()));
  }
  return machine;
}

tl::expected<void, BuildError> Machine::restore_ahead(const RestoreParts& parts) {
  MAYFLY_CHECK(parts.devices.size() == parts.queues.size(), "every device has queues");
  if (parts.state.transports.size() != parts.devices.size()) {
    return fail(ErrorCode::kInvalidArgument, "the saved state is of another number of devices");
  }
  if (parts.log_writes) {
    MAYFLY_TRY(dirty_log_.start());
  }
  MAYFLY_TRY(add_virtio(parts.devices));
  MAYFLY_TRY(traced(trace_, "connect devices", [&] { return connect_devices(); }));
  MAYFLY_TRY(traced(trace_, "restore vCPUs", [&] { return set_up_cpus(); }));
  MAYFLY_TRY(traced(trace_, "restore devices", [&] { return restore_devices(parts); }));
  state_ = State::kPaused;
  // A guest that was saved may go on more than once, and has to know.
  MAYFLY_TRY(notify_generation_change());
  return {};
}

// After the vCPUs: interrupts that were pending are raised again, at local APICs that are there.
Result<void> Machine::restore_devices(const RestoreParts& parts) {
  const MachineState& state = parts.state;
  if (const auto timer = std::exchange(platform_.timer, nullptr)) {
    MAYFLY_TRY(traced(trace_, "wait for the timer", [&] { return timer->take(); }));
  }
  MAYFLY_TRY(arch::restore_platform(platform_.vm, state.platform));
  power_.set_state(state.power);
  MAYFLY_TRY(serial_.restore(state.serial));
  for (std::size_t index = 0; index < virtio_.size(); ++index) {
    MAYFLY_TRY(virtio_[index]->transport().restore(state.transports[index], parts.queues[index]));
  }
  kvm_clock_data clock = state.clock;
  if (parts.advance_clock && (clock.flags & KVM_CLOCK_REALTIME) == 0) {
    return fail(
        ErrorCode::kUnsupported,
        "the clock cannot be moved on: the host of the snapshot did not say when it was taken (Linux 5.16)");
  }
  clock.flags &= parts.advance_clock ? std::uint32_t{KVM_CLOCK_REALTIME} : 0;
  MAYFLY_TRY(platform_.vm.set_clock(clock));
  note_pause();
  return {};
}

Result<void> Machine::add_virtio(std::span<VirtioDevice* const> devices) {
  for (VirtioDevice* device : devices) {
    MAYFLY_TRY_ASSIGN(auto slot,
                      VirtioSlot::create(*device, memory_, registrar_, windows_.window(virtio_.size())));
    virtio_.push_back(std::move(slot));
  }
  return {};
}

void Machine::add_cpu(Vcpu vcpu, std::unique_ptr<VcpuThread> thread) {
  cpus_.push_back(std::make_unique<KvmCpu>(std::move(vcpu), CpuBuses{ports_, mmio_, &power_line_}, trace_));
  threads_.push_back(std::move(thread));
  threads_.back()->take_on(*cpus_.back(), [this](Outcome outcome) { ending_.report(std::move(outcome)); });
}

Result<void> Machine::create_cpus(VcpuThreads threads) {
  for (auto& thread : threads) {
    MAYFLY_TRY_ASSIGN(Vcpu vcpu, platform_.vm.create_vcpu(static_cast<std::uint32_t>(cpus_.size())));
    add_cpu(std::move(vcpu), std::move(thread));
  }
  return {};
}

tl::expected<void, BuildError> Machine::set_up_cpus() {
  for (const auto& cpu : cpus_) {
    MAYFLY_TRY(platform_.processor.set_up(cpu->vcpu()));
  }
  // They hold what was saved of the vCPUs.
  platform_.processor.prepare = {};
  platform_.processor.set_up = {};
  return {};
}

Result<void> Machine::wait_ready() {
  for (const auto& thread : threads_) {
    MAYFLY_TRY(thread->wait_ready());
  }
  return {};
}

Result<void> Machine::start() {
  if (state_ != State::kNotStarted) {
    return fail(ErrorCode::kBusy, "the microVM has been started already");
  }
  MAYFLY_TRY(wait_ready());
  if (trace_ != nullptr) {
    trace_->mark("guest start");
  }
  for (const auto& thread : threads_) {
    thread->resume();
  }
  state_ = State::kRunning;
  return {};
}

Result<void> Machine::pause() {
  if (state_ == State::kPaused) {
    return {};
  }
  if (state_ != State::kRunning) {
    return fail(ErrorCode::kBusy, "the microVM is not running");
  }
  // All are asked before one is waited for: they come out side by side.
  for (const auto& thread : threads_) {
    thread->request_park();
  }
  const auto deadline = std::chrono::steady_clock::now() + kParkLimit;
  for (const auto& thread : threads_) {
    if (!thread->wait_parked(deadline)) {
      for (const auto& other : threads_) {
        other->resume();
      }
      return fail(ErrorCode::kInternal, "pause: a vCPU does not leave the guest");
    }
  }
  note_pause();
  state_ = State::kPaused;
  return {};
}

// Without it a paused guest's watchdogs would bark; a guest that does not listen loses nothing.
void Machine::note_pause() {
  for (const auto& cpu : cpus_) {
    if (auto noted = cpu->vcpu().note_pause(); !noted) {
      metrics().vcpu.kvmclock_ctrl_fails.add();
      LOG_WARN("%s", noted.error().message().c_str());
    }
  }
}

Result<MachineState> Machine::save() {
  if (state_ != State::kPaused) {
    return fail(ErrorCode::kBusy, "the microVM is not paused");
  }
  MachineState state;
  for (const auto& slot : virtio_) {
    state.transports.push_back(slot->transport().state());
  }
  state.serial = serial_.save();
  state.power = power_.state();
  for (const auto& cpu : cpus_) {
    MAYFLY_TRY_ASSIGN(auto vcpu, platform_.processor.save(cpu->vcpu()));
    state.vcpus.push_back(std::move(vcpu));
  }
  MAYFLY_TRY_ASSIGN(state.platform, arch::save_platform(platform_.vm));
  MAYFLY_TRY_ASSIGN(state.clock, platform_.vm.clock());
  return state;
}

Result<void> Machine::resume() {
  if (state_ == State::kRunning) {
    return {};
  }
  if (state_ != State::kPaused) {
    return fail(ErrorCode::kBusy, "the microVM is not paused");
  }
  MAYFLY_TRY(wait_ready());
  for (const auto& thread : threads_) {
    thread->resume();
  }
  state_ = State::kRunning;
  return {};
}

Result<void> Machine::stop() {
  for (const auto& thread : threads_) {
    thread->request_stop();
  }
  const auto deadline = std::chrono::steady_clock::now() + kParkLimit;
  for (const auto& thread : threads_) {
    if (!thread->wait_stopped(deadline)) {
      return fail(ErrorCode::kInternal, "stop: a vCPU does not leave the guest");
    }
  }
  state_ = State::kStopped;
  return {};
}

}  // namespace mayfly
