// The part of a machine that takes the host longest, and how it is made beside what else a restore does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

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

// What of a machine takes the host longest, and needs neither devices nor what its vCPUs hold: made ahead for
// clones. Destroyed from the last to the first.
struct MachineFrame {
  GuestMemory memory;
  VirtioWindows windows;
  Vm vm;
  Processor processor;      // to set up the vCPUs with
  std::vector<Vcpu> vcpus;  // fresh
  // One for each of them, started, with no vCPU taken on yet; empty: the machine starts them.
  std::vector<std::unique_ptr<VcpuThread>> threads{};
};

// In the VM `empty`, if there is one, for `devices` virtio devices, without a processor, which the caller
// adds. By the process that is to run it: KVM ties a VM to the address space that it was made in.
Result<MachineFrame> make_frame(GuestMemory memory, std::size_t devices, const Kvm& kvm,
                                std::optional<Vm> empty, std::uint32_t vcpus);

// A frame under way beside what its owner does: on the thread of HostKvm, or, where that has nothing, made
// when it is taken.
class FrameAhead {
 public:
  // `host`, which may be null, is used up. The others as of make_frame().
  FrameAhead(GuestMemory memory, std::size_t devices, std::uint32_t vcpus, HostKvm* host);
  FrameAhead(FrameAhead&&) = default;
  FrameAhead& operator=(FrameAhead&&) = default;
  FrameAhead(const FrameAhead&) = delete;
  FrameAhead& operator=(const FrameAhead&) = delete;
  ~FrameAhead() = default;

  // Of its memory.
  Backing backing() const { return backing_; }

  // Where it is under way, waits until there is a VM, and creates its timer, while the thread creates its
  // vCPUs: each takes KVM as long as the other. Once; before open_kvm(), which waits for that thread.
  void create_timer();
  // Then, once, with what open_kvm() has opened by the same `host`.
  Result<MachineFrame> take(OpenKvm& opened, BootTrace* trace);

 private:
  struct Making;
  Backing backing_;
  bool is_under_way_ = false;
  bool timer_is_made_ = false;  // or found to be impossible
  Result<void> timer_{};
  std::shared_ptr<Making> making_;  // the thread's too, which may end after this
};

}  // namespace mayfly
