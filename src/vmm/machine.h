// The machine: a configuration or a saved machine made into memory, devices and vCPUs, and its life from
// start to stop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/handover.h"
#include "base/result.h"
#include "devices/bus/bus.h"
#include "devices/i8042/i8042.h"
#include "devices/power/power.h"
#include "devices/serial/serial.h"
#include "devices/vmgenid/vmgenid.h"
#include "event/event_loop.h"
#include "kvm/arch.h"
#include "kvm/host_kind.h"
#include "kvm/kvm.h"
#include "memory/guest_memory.h"
#include "vmm/arch.h"
#include "vmm/boot_mark.h"
#include "vmm/boot_trace.h"
#include "vmm/build_error.h"
#include "vmm/config.h"
#include "vmm/dirty_log.h"
#include "vmm/event_line.h"
#include "vmm/frame_ahead.h"
#include "vmm/guest_files.h"
#include "vmm/host_kvm.h"
#include "vmm/kvm_cpu.h"
#include "vmm/outcome.h"
#include "vmm/vcpu_thread.h"
#include "vmm/virtio_slot.h"
#include "vmm/virtio_windows.h"

namespace mayfly {

// What a machine's memory is made of.
Backing backing_of(HugePages huge_pages);

// KVM, able to run that machine: `ahead`, where somebody has opened it already and the machine asks for
// nothing of its own. `trace` may be null. What a CPU template asks for and this KVM does not have is the
// configuration's fault.
tl::expected<OpenKvm, BuildError> open_kvm(const VmConfig& config, BootTrace* trace,
                                           std::optional<OpenKvm> ahead);

// What a machine needs from around it. Borrowed; outlives the machine.
struct MachineSurroundings {
  EventRegistrar& registrar;  // of the thread that owns the machine
  SerialBackend& console;
  SerialMetrics& serial_metrics;
  BootTrace* trace;  // null: none wanted
  // How the guest or KVM ended it: called at most once, on a vCPU's thread. Must not wait for that thread.
  std::function<void(Outcome)> on_outcome;
  unsigned (*address_bits)() = &host_address_bits;  // of the host's processor; a test's own
  // The guest wrote its boot mark: called at most once, on a vCPU's thread, which it must not hold up. Empty:
  // nobody asks, and only a trace makes the mark's register part of the machine.
  std::function<void()> on_boot_mark{};
  // Called on each vCPU's thread before it runs the guest: VcpuThread::start().
  std::function<Result<void>()> confine_vcpu{};
  HostKvm* host_kvm = nullptr;  // null: there is nothing ahead
};

// What a machine is made of besides its configuration. Borrowed: the files until it is built, the devices for
// as long as it lives; they are those of the configuration, in the order in which the guest finds them.
struct MachineParts {
  const GuestFiles& files;
  std::span<VirtioDevice* const> devices;
};

// All that a machine keeps beside its memory and what its devices keep themselves.
struct MachineState {
  std::vector<arch::VcpuState> vcpus{};  // by id
  arch::PlatformState platform{};
  kvm_clock_data clock{};
  SerialState serial{};
  PowerState power{};
  std::vector<MmioTransportState> transports{};  // of the virtio devices, in the order of their windows
};

// What a machine is made of that goes on where another was saved.
struct RestoreParts {
  FrameAhead* frame;  // null for a machine that was made ahead
  // In the order of their windows, each restored to what it said when the machine was saved, and how far the
  // queues of each had come. Borrowed as in MachineParts.
  std::span<VirtioDevice* const> devices;
  std::span<const std::vector<std::optional<VirtQueueState>>> queues;
  MachineState state;
  // The guests' clock (kvmclock) has gone on since, as far as the host's wall clock has. Otherwise it goes on
  // from where it stood.
  bool advance_clock = false;
  // What is written to the memory is logged from before its vCPUs have their state, by which KVM writes.
  bool log_writes = false;
};

// Made by build() with its guest loaded and its vCPUs parked. One thread owns it and calls it; the vCPU
// threads it starts are its own.
class Machine {
 public:
  enum class State : std::uint8_t { kNotStarted, kRunning, kPaused, kStopped };

  // How long pause() and stop() wait for the vCPUs to come out of the guest.
  static constexpr std::chrono::seconds kParkLimit{10};

  // What the configuration says is looked at before the host is asked for anything. Nothing is left behind by
  // an error, and the devices are as they were. Install the vCPUs' kick handler first.
  static tl::expected<std::unique_ptr<Machine>, BuildError> build(const VmConfig& config,
                                                                  const MachineParts& parts,
                                                                  MachineSurroundings surroundings);

  // Paused, and its guest not told of anything. `config` is what the machine was built by; parts of it that
  // say how a guest is loaded mean nothing. Errors as build(), and kUnsupported or kInvalidArgument where the
  // state does not fit this host or these devices. Never a machine half restored.
  static tl::expected<std::unique_ptr<Machine>, BuildError> restore(const VmConfig& config,
                                                                    RestoreParts parts,
                                                                    MachineSurroundings surroundings);

  // A machine of which nothing is missing but what restore_ahead() brings, its vCPUs' threads parked.
  static Result<std::unique_ptr<Machine>> make_ahead(MachineFrame frame, MachineSurroundings surroundings);
  // Makes of it what restore() makes; once. After an error it is to be given up.
  tl::expected<void, BuildError> restore_ahead(const RestoreParts& parts);

  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() = default;

  State state() const { return state_; }
  // The guest or KVM has ended it, whether its owner knows or not. Of a machine that is paused the answer
  // stays what it is.
  bool has_ended() const { return ending_.reported(); }
  Serial16550& serial() { return serial_; }
  const I8042& i8042() const { return i8042_; }

  // Waits until each vCPU's thread is confined and has its vCPU, and says why one does not.
  Result<void> wait_ready();
  // The first instruction. Error kBusy unless the state is kNotStarted.
  Result<void> start();
  // No guest instruction runs when this comes back, and every vCPU's registers are whole. Idempotent. Errors:
  // kBusy before the start and after the end; kInternal where a vCPU does not come out in time: the machine
  // then runs on.
  Result<void> pause();
  // Idempotent. Error kBusy before the start and after the end.
  Result<void> resume();
  // Of a machine that is paused; it can go on afterwards. What the devices keep themselves is to be asked for
  // first: what they have under way ends by interrupts, which are part of this. Error kBusy in another state;
  // else of the host's.
  Result<MachineState> save();
  // Ties the memory file that is written next to its state file.
  // `base`: the mark of what it is a diff to; zeros for one that is whole.
  Result<void> mark_snapshot(const RandomId& mark, const RandomId& base);
  // To be read while the machine is paused, or with a dirty log beside.
  const GuestMemory& memory() const { return memory_; }
  // What is written to it, once it was started. Borrows the machine.
  DirtyLog& dirty_log() { return dirty_log_; }

  // Asks the guest to end in good order, as its firmware would; see the room's README. A guest that is paused
  // hears of it when it is resumed; to ask again does no harm. Errors: kBusy before the start and after the
  // end, and where the guest has nobody who listens: the request is not kept for later.
  Result<void> request_shutdown();
  // The guest goes on as another than it was, for example as a copy: gives it a new VM generation id and the
  // interrupt that tells of it, which it takes when it runs. Once the vCPUs have the state that they go on
  // with: later it would be lost. Error kBusy while the guest runs and after the end.
  Result<void> notify_generation_change();
  // Ends all vCPU threads. Idempotent. Error kInternal where one does not end in time.
  Result<void> stop();

 private:
  // Where the endings of all vCPUs and devices meet: the first wins.
  class Ending final : public PowerSink {
   public:
    explicit Ending(std::function<void(Outcome)> on_outcome) : on_outcome_(std::move(on_outcome)) {}
    void power_event(PowerEvent event) noexcept override;
    void report(Outcome outcome) noexcept;
    bool reported() const { return reported_.test(); }

   private:
    std::function<void(Outcome)> on_outcome_;
    std::atomic_flag reported_;
  };

  // Tells the trace of the first byte that the guest sends.
  class TracedConsole final : public SerialBackend {
   public:
    TracedConsole(SerialBackend& console, BootTrace& trace) : console_(console), trace_(trace) {}
    void transmit(std::uint8_t byte) override;
    void input_room_available() override { console_.input_room_available(); }

   private:
    SerialBackend& console_;
    BootTrace& trace_;
    std::atomic_flag sent_;
  };

  // What KVM gives a machine.
  struct Platform {
    Vm vm;
    Processor processor;
    std::shared_ptr<Handover<Result<void>>> timer{};  // MachineFrame's
  };

  Machine(GuestMemory memory, VirtioWindows windows, Platform platform, EventLine serial_line,
          MachineSurroundings surroundings);
  Result<void> add_virtio(std::span<VirtioDevice* const> devices);
  // Of the architecture, as it says which device answers where.
  Result<void> connect_devices();
  Result<void> connect_virtio(VirtioSlot& slot, std::uint32_t index);
  Result<void> create_cpus(std::vector<std::unique_ptr<VcpuThread>> threads);
  tl::expected<void, BuildError> set_up_cpus();
  // With its thread, which takes it on.
  void add_cpu(Vcpu vcpu, std::unique_ptr<VcpuThread> thread);
  // After the vCPUs are restored.
  Result<void> restore_devices(const RestoreParts& parts);
  // Memory that restore_ahead() writes to becomes this machine's own; what is in it stays.
  Result<void> touch_ahead();
  void note_pause();

  // Destroyed from the last to the first: threads, vCPUs, devices, the VM, its memory.
  GuestMemory memory_;
  VirtioWindows windows_;
  Platform platform_;
  DirtyLog dirty_log_;
  EventRegistrar& registrar_;
  BootTrace* trace_;
  Ending ending_;
  PowerLine power_line_;
  EventLine serial_line_;
  std::unique_ptr<TracedConsole> traced_console_;
  Serial16550 serial_;
  I8042 i8042_;
  PowerDevice power_;
  std::unique_ptr<BootMark> boot_mark_;
  std::vector<std::unique_ptr<VirtioSlot>> virtio_;
  Bus ports_;
  Bus mmio_;
  std::vector<std::unique_ptr<KvmCpu>> cpus_;
  std::vector<std::unique_ptr<VcpuThread>> threads_;
  State state_ = State::kNotStarted;
};

}  // namespace mayfly
