// A virtio device in its place in the machine: with the interrupt line and the transport that are its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "base/result.h"
#include "devices/virtio/transport/mmio_transport.h"
#include "devices/virtio/transport/virtio_device.h"
#include "event/event_loop.h"
#include "memory/guest_memory.h"
#include "vmm/event_line.h"

namespace mayfly {

// Made and destroyed on the registrar's thread. Destroyed while no vCPU runs and before the memory: the
// device, which goes on living, is reset first, so that no request of its is under way any more.
class VirtioSlot {
 public:
  // All are borrowed and outlive the slot; `shown`: as for MmioTransport::create(). Errors: the host has no
  // descriptors left.
  static Result<std::unique_ptr<VirtioSlot>> create(VirtioDevice& device, GuestMemory& memory,
                                                    EventRegistrar& registrar,
                                                    std::span<std::uint32_t> shown);
  VirtioSlot(const VirtioSlot&) = delete;
  VirtioSlot& operator=(const VirtioSlot&) = delete;
  ~VirtioSlot();

  VirtioDevice& device() { return device_; }
  MmioTransport& transport() { return *transport_; }
  const EventLine& line() const { return line_; }

 private:
  VirtioSlot(VirtioDevice& device, EventLine line) : device_(device), line_(std::move(line)) {}

  VirtioDevice& device_;
  EventLine line_;
  std::unique_ptr<MmioTransport> transport_;
};

}  // namespace mayfly
