// One virtual machine: its memory slots, interrupt controllers and event descriptors.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "kvm/vcpu.h"
#include "memory/guest_address.h"
#include "memory/guest_memory.h"

namespace mayfly {

// Pages of this process that the guest may read where it has no RAM. What it writes there is an access to a
// device as anywhere outside RAM.
struct ReadOnlyPages {
  GuestRange range;
  const void* host;  // aligned to a page; outlives the Vm
};

struct VmOptions {
  // Performance counters for the guest.
  bool pmu = false;
  // Left out where the KVM has no KVM_CAP_READONLY_MEM: reads then are accesses to a device, too.
  std::optional<ReadOnlyPages> read_only{};
  bool timer = true;  // not: Vm::create_timer() is yet to be called
};

// The guest's write that rings a doorbell without leaving the kernel.
struct Doorbell {
  enum class Space : std::uint8_t { kPort, kMmio };
  Space space = Space::kMmio;
  std::uint64_t address = 0;
  // Bytes the guest writes: 1, 2, 4 or 8; or 0 for any, which spares KVM decoding the instruction.
  std::uint32_t length = 0;
  // Only this value rings it; only with a length.
  std::optional<std::uint64_t> value;
};

// Made by Kvm::create_empty_vm, and by complete_vm complete but for its vCPUs. Owns the descriptor;
// move-only. Member functions are thread-safe except as noted. The guest memory must outlive it and its
// vCPUs.
class Vm {
 public:
  // Lines of the interrupt controllers that KVM makes: GSI 0-15 reach both PICs and the IOAPIC, 16-23 the
  // IOAPIC (api.rst 4.24).
  static constexpr std::uint32_t kGsiCount = 24;

  // KVM_CREATE_VCPU (api.rst 4.7); on x86-64 `id` is the local APIC's id. Errors: kIo (EEXIST) for an id that
  // is taken, kInvalidArgument for one past the KVM's limit, kExhausted.
  Result<Vcpu> create_vcpu(std::uint32_t id) const;

  // KVM_IRQFD (api.rst 4.75): each signal of `event` is a rising edge on `gsi`. KVM keeps a reference of its
  // own: `event` may be closed after. Errors: kInvalidArgument for a gsi past kGsiCount, kBusy for an event
  // that is registered already.
  Result<void> register_irqfd(const UniqueFd& event, std::uint32_t gsi) const;

  // KVM_IRQ_LINE (api.rst 4.25): a rising edge on `gsi` before this comes back, and the line low again. Needs
  // no descriptor as an irqfd does: for what hardly ever happens. Error kInvalidArgument for a gsi past
  // kGsiCount.
  Result<void> pulse_line(std::uint32_t gsi) const;

  // KVM_IOEVENTFD (api.rst 4.59): the guest's write signals `event` and reaches no bus. Errors:
  // kInvalidArgument for a length that is none of those above, kIo (EEXIST) for a doorbell that is there
  // already.
  Result<void> register_doorbell(const UniqueFd& event, const Doorbell& doorbell) const;

  // KVM_GET_CLOCK and KVM_SET_CLOCK (api.rst 4.29, 4.30): nanoseconds of the guests' kvmclock.
  Result<kvm_clock_data> clock() const;
  Result<void> set_clock(const kvm_clock_data& clock) const;

  // Starts or stops logging of the pages that the guest writes, on all slots (KVM_MEM_LOG_DIRTY_PAGES,
  // api.rst 4.35). Not thread-safe. Waits for the kernel's grace periods: milliseconds.
  Result<void> set_dirty_logging(bool on);
  // KVM_GET_DIRTY_LOG (api.rst 4.8): one bit a 4 KiB page of the region with that index, lowest first, of
  // those written since the last call; reading clears them. Error kNotFound where logging is off.
  Result<std::vector<std::uint64_t>> take_dirty_pages(std::size_t region) const;

  // The same VM by a descriptor of its own, for what is done to it beside its owner, who may let go of his
  // meanwhile: of the guest memory as well, where what is done touches none.
  Result<Vm> duplicate() const;

  // The architecture's timer, once, where VmOptions left it out: of a VM that is complete but for it, before
  // its guest runs. KVM starts a thread for it and waits for that; meanwhile another thread may set up vCPUs.
  Result<void> create_timer() const;

  // The descriptor, for this room's own use.
  const UniqueFd& descriptor() const { return fd_; }

 private:
  friend class Kvm;
  Vm(UniqueFd fd, std::size_t run_area_size) : fd_(std::move(fd)), run_area_size_(run_area_size) {}

  // KVM_SET_USER_MEMORY_REGION (api.rst 4.35), one slot a region.
  Result<void> set_memory(std::span<const MemoryRegion> memory);
  // The same with KVM_MEM_READONLY; after set_memory().
  Result<void> set_read_only(const ReadOnlyPages& pages) const;
  // Interrupt controllers, timer and what else the architecture wants before the first vCPU; after
  // set_memory().
  Result<void> create_platform(const VmOptions& options);

  UniqueFd fd_;
  std::size_t run_area_size_;
  std::vector<kvm_userspace_memory_region> slots_;  // of RAM, and only that
};

}  // namespace mayfly
