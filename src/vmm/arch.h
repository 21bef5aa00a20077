// What the machine needs of the processor's architecture, in terms that name none: the one door of this
// room's common sources. Implemented in the architecture's folder (x86_64/); Machine::connect_devices() is,
// too.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "kvm/arch.h"
#include "kvm/kvm.h"
#include "kvm/vcpu.h"
#include "kvm/vm.h"
#include "memory/guest_address.h"
#include "memory/guest_memory.h"
#include "vmm/boot_trace.h"
#include "vmm/build_error.h"
#include "vmm/config.h"
#include "vmm/guest_files.h"

namespace mayfly {

// The ranges of guest-physical addresses that hold `size` bytes of RAM, ascending. Error kInvalidArgument for
// a size that cannot be had.
Result<std::vector<GuestRange>> guest_memory_ranges(std::uint64_t size);

// The page of guest RAM that has the VM generation id and the snapshot mark (devices/vmgenid).
GuestAddress vm_gen_id_page();

// The VM with its memory and interrupt controllers, without vCPUs. `virtio` are the windows of the virtio
// devices, one behind the other as the guest finds them. Both outlive it. `empty`: what it is made of, where
// there is one. Without `timer` Vm::create_timer() is yet to be called.
Result<Vm> create_platform_vm(std::optional<Vm> empty, const Kvm& kvm, const GuestMemory& memory,
                              std::span<const std::uint32_t> virtio, bool timer = true);

// Brings the first vCPU, fresh but for its SetUpVcpu, to the state in which the loaded guest starts. The
// others wait for the first to start them.
using EnterGuest = std::function<Result<void>(const Vcpu&)>;

// Loads kernel, initrd, command line and firmware tables into fresh memory. `trace` may be null. Errors:
// kInvalidImage and kInvalidArgument, naming the file or the command line.
Result<EnterGuest> load_guest(GuestMemory& memory, const VmConfig& config, const GuestFiles& files,
                              BootTrace* trace);

// What the vCPUs of a machine are. Not thread-safe.
struct Processor {
  // Of one that was saved, and first: what may be done long before the guest goes on. A fresh vCPU, by its
  // id.
  std::function<Result<void>(const Vcpu&)> prepare{};
  // Makes that vCPU one of them; a fresh one where there was nothing to prepare.
  std::function<tl::expected<void, BuildError>(const Vcpu&)> set_up;
  // All that KVM keeps of a vCPU that stands still (VcpuState).
  std::function<Result<arch::VcpuState>(const Vcpu&)> save;
};

// What KVM can give a guest of this host's processor.
Result<arch::SupportedProcessor> supported_processor(const Kvm& kvm);

// Chooses the processor that guests of this KVM see, as the configuration asks for it. Needs no VM. What a
// CPU template asks for and this host does not have is the configuration's fault.
tl::expected<Processor, BuildError> choose_processor(const Kvm& kvm,
                                                     const arch::SupportedProcessor& supported,
                                                     const VmConfig& config);

// The processor that was saved: its vCPUs go on where they were. `saved` by id, from 0 on. kUnsupported where
// this host lacks what the guest may be using, naming it.
Result<Processor> restore_processor(const Kvm& kvm, const arch::SupportedProcessor& supported,
                                    std::vector<arch::VcpuState> saved);

}  // namespace mayfly
