#include "kvm/vm.h"

#include <string>

#include "kvm/ioctl.h"

#include "base/text.h"

namespace mayfly {
namespace {

using kvm_detail::call;
using kvm_detail::command;

constexpr std::uint64_t kPageSize = 4096;
constexpr __u32 kLogDirtyPages = KVM_MEM_LOG_DIRTY_PAGES;

std::string describe(const kvm_userspace_memory_region& slot) {
  return "set guest memory slot " + std::to_string(slot.slot) + " of " + hex(slot.memory_size) +
         " bytes at " + hex(slot.guest_phys_addr) + " (KVM_SET_USER_MEMORY_REGION)";
}

Result<kvm_ioeventfd> to_ioeventfd(const UniqueFd& event, const Doorbell& doorbell) {
  const bool sized =
      doorbell.length == 1 || doorbell.length == 2 || doorbell.length == 4 || doorbell.length == 8;
  if (!sized && (doorbell.length != 0 || doorbell.value)) {
    return fail(ErrorCode::kInvalidArgument, "doorbell at " + hex(doorbell.address) + ": a write of " +
                                                 std::to_string(doorbell.length) + " bytes cannot ring it");
  }
  kvm_ioeventfd request{};
  request.addr = doorbell.address;
  request.len = doorbell.length;
  request.fd = event.get();
  if (doorbell.space == Doorbell::Space::kPort) {
    request.flags |= KVM_IOEVENTFD_FLAG_PIO;
  }
  if (doorbell.value) {
    request.flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
    request.datamatch = *doorbell.value;
  }
  return request;
}

}  // namespace

Result<void> Vm::set_memory(std::span<const MemoryRegion> memory) {
  slots_.reserve(memory.size());
  for (const MemoryRegion& region : memory) {
    kvm_userspace_memory_region slot{};
    slot.slot = static_cast<std::uint32_t>(slots_.size());
    slot.guest_phys_addr = region.range.base().value();
    slot.memory_size = region.range.size();
    // SAFETY: KVM takes the address of the mapping as an integer; it stays mapped as long as the caller's
    // memory.
    slot.userspace_addr = reinterpret_cast<std::uintptr_t>(region.host);
    MAYFLY_TRY(command(fd_, KVM_SET_USER_MEMORY_REGION, &slot, describe(slot)));
    slots_.push_back(slot);
  }
  return {};
}

Result<void> Vm::set_read_only(const ReadOnlyPages& pages) const {
  kvm_userspace_memory_region slot{};
  slot.slot = static_cast<std::uint32_t>(slots_.size());
  slot.flags = KVM_MEM_READONLY;
  slot.guest_phys_addr = pages.range.base().value();
  slot.memory_size = pages.range.size();
  // SAFETY: as in set_memory().
  slot.userspace_addr = reinterpret_cast<std::uintptr_t>(pages.host);
  return command(fd_, KVM_SET_USER_MEMORY_REGION, &slot, describe(slot));
}

Result<Vm> Vm::duplicate() const {
  MAYFLY_TRY_ASSIGN(UniqueFd copy, mayfly::duplicate(fd_, "a virtual machine"));
  Vm same(std::move(copy), run_area_size_);
  same.slots_ = slots_;
  return same;
}

Result<Vcpu> Vm::create_vcpu(std::uint32_t id) const {
  MAYFLY_TRY_ASSIGN(const int created, call(fd_, KVM_CREATE_VCPU, static_cast<unsigned long>(id),
                                            "create vCPU " + std::to_string(id) + " (KVM_CREATE_VCPU)"));
  return Vcpu::from_descriptor(UniqueFd(created), run_area_size_, id);
}

Result<void> Vm::register_irqfd(const UniqueFd& event, std::uint32_t gsi) const {
  if (gsi >= kGsiCount) {
    return fail(ErrorCode::kInvalidArgument, "interrupt line " + std::to_string(gsi) +
                                                 ": the interrupt controllers have only " +
                                                 std::to_string(kGsiCount));
  }
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(event.get());
  request.gsi = gsi;
  return command(fd_, KVM_IRQFD, &request,
                 "connect an event to interrupt line " + std::to_string(gsi) + " (KVM_IRQFD)");
}

Result<void> Vm::pulse_line(std::uint32_t gsi) const {
  if (gsi >= kGsiCount) {
    return fail(ErrorCode::kInvalidArgument, "there is no interrupt line " + std::to_string(gsi));
  }
  for (const std::uint32_t level : {1U, 0U}) {
    kvm_irq_level line{};
    line.irq = gsi;
    line.level = level;
    MAYFLY_TRY(
        command(fd_, KVM_IRQ_LINE, &line, "pulse interrupt line " + std::to_string(gsi) + " (KVM_IRQ_LINE)"));
  }
  return {};
}

Result<void> Vm::register_doorbell(const UniqueFd& event, const Doorbell& doorbell) const {
  MAYFLY_TRY_ASSIGN(kvm_ioeventfd request, to_ioeventfd(event, doorbell));
  return command(fd_, KVM_IOEVENTFD, &request,
                 "set a doorbell at " + hex(doorbell.address) + " (KVM_IOEVENTFD)");
}

Result<kvm_clock_data> Vm::clock() const {
  return kvm_detail::read_state<kvm_clock_data>(fd_, KVM_GET_CLOCK, "read the guest clock (KVM_GET_CLOCK)");
}

Result<void> Vm::set_clock(const kvm_clock_data& clock) const {
  return command(fd_, KVM_SET_CLOCK, &clock, "set the guest clock (KVM_SET_CLOCK)");
}

Result<void> Vm::set_dirty_logging(bool on) {
  for (kvm_userspace_memory_region& slot : slots_) {
    kvm_userspace_memory_region changed = slot;
    changed.flags = on ? kLogDirtyPages : 0;
    MAYFLY_TRY(command(fd_, KVM_SET_USER_MEMORY_REGION, &changed, describe(changed)));
    slot = changed;
  }
  return {};
}

Result<std::vector<std::uint64_t>> Vm::take_dirty_pages(std::size_t region) const {
  if (region >= slots_.size()) {
    return fail(ErrorCode::kOutOfRange, "memory region " + std::to_string(region) + ": there are only " +
                                            std::to_string(slots_.size()));
  }
  const std::uint64_t pages = slots_[region].memory_size / kPageSize;
  std::vector<std::uint64_t> bitmap((pages + 63) / 64);
  kvm_dirty_log request{};
  request.slot = slots_[region].slot;
  request.dirty_bitmap = bitmap.data();
  MAYFLY_TRY(command(fd_, KVM_GET_DIRTY_LOG, &request, "read the dirty pages (KVM_GET_DIRTY_LOG)"));
  return bitmap;
}

}  // namespace mayfly
