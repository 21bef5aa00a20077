// The part of a machine that takes the host longest, and how it is made beside what else a restore does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/handover.h"
#include "base/result.h"
#include "kvm/kvm.h"
#include "kvm/vcpu.h"
#include "kvm/vm.h"
#include "memory/guest_memory.h"
#include "vmm/arch.h"
#include "vmm/boot_trace.h"
#include "vmm/host_kvm.h"
#include "vmm/vcpu_thread.h"
#include "vmm/virtio_windows.h"

namespace mayfly {

// What of a machine takes the host longest, and needs neither devices nor what its vCPUs hold: made beside
// the rest for a restore, and ahead for clones. Destroyed from the last to the first.
struct MachineFrame {
  GuestMemory memory;
  VirtioWindows windows;
  Vm vm;
  Processor processor;      // to set up the vCPUs with
  std::vector<Vcpu> vcpus;  // fresh
  // One for each of them, started, with no vCPU taken on yet; empty: the machine starts them.
  std::vector<std::unique_ptr<VcpuThread>> threads{};
  // Null, or a timer under way: to be taken once, before the timer is used.
  std::shared_ptr<Handover<Result<void>>> timer{};
};

// In the VM `empty`, if there is one, for `devices` virtio devices, with its timer and without a processor,
// which the caller adds. By the process that is to run it: KVM ties a VM to the address space that it was
// made in.
Result<MachineFrame> make_frame(GuestMemory memory, std::size_t devices, const Kvm& kvm,
                                std::optional<Vm> empty, std::uint32_t vcpus);

// A frame under way beside what its owner does: on a thread of HostKvm's, or, where that has nothing, made
// when it is taken.
class FrameAhead {
 public:
  // `host`, which may be null, is used up, and is there until take_kvm(). The others as of make_frame().
  FrameAhead(GuestMemory memory, std::size_t devices, std::uint32_t vcpus, HostKvm* host);
  FrameAhead(FrameAhead&&) = default;
  FrameAhead& operator=(FrameAhead&& other) noexcept;
  FrameAhead(const FrameAhead&) = delete;
  FrameAhead& operator=(const FrameAhead&) = delete;
  // Waits for what is under way: who gives it up has its memory back.
  ~FrameAhead();

  // Of its memory.
  Backing backing() const { return backing_; }

  // Waits, where it is under way, until it is there but for its timer, which nothing needs before the state
  // of the vCPUs is set. What `host` has opened; nothing where it could not. Once; `trace` may be null.
  std::optional<OpenKvm> take_kvm(BootTrace* trace);
  // Then, once, with what open_kvm() has made of that.
  Result<MachineFrame> take(OpenKvm& opened, BootTrace* trace);

 private:
  struct Making;
  void wait();
  void give_up();

  Backing backing_;
  HostKvm* host_;                   // null: it is under way there, or there is none
  std::shared_ptr<Making> making_;  // the thread's too, which may end after this
};

}  // namespace mayfly
