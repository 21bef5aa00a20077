#include "vmm/virtio_slot.h"

#include <utility>

#include "base/mutex.h"

namespace mayfly {

Result<std::unique_ptr<VirtioSlot>> VirtioSlot::create(VirtioDevice& device, GuestMemory& memory,
                                                       EventRegistrar& registrar,
                                                       std::span<std::uint32_t> shown) {
  MAYFLY_TRY_ASSIGN(EventLine line, EventLine::create());
  std::unique_ptr<VirtioSlot> slot(new VirtioSlot(device, std::move(line)));
  MAYFLY_TRY_ASSIGN(slot->transport_, MmioTransport::create(device, memory, slot->line_, registrar, shown));
  return slot;
}

VirtioSlot::~VirtioSlot() {
  const MutexLock lock(device_.mutex());
  device_.reset();
}

}  // namespace mayfly
