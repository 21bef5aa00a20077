// The register window of a virtio device on the MMIO bus (virtio 1.2, section 4.2; version 2).
//
// Every register of 4.2.2 is here. Control registers are accessed as aligned 32-bit words; any other access
// reads as all ones and writes nothing, and so do registers that cannot be read, that cannot be written and
// that do not exist. A write that the state of the device does not allow is ignored:
//
//   DriverFeatures                      between DRIVER and FEATURES_OK
//   QueueSize, addresses, QueueReady 1  between FEATURES_OK and DRIVER_OK, while that queue is not ready
//   configuration space                 from DRIVER on
//
// and none of them once FAILED or DEVICE_NEEDS_RESET is set. A 0 in QueueReady stops the queue at any time,
// until the next reset. Status bits are set in the order of 3.1.1 and cleared by a reset only; FEATURES_OK
// stays 0 where the driver accepted what was not offered, or not VIRTIO_F_VERSION_1.
//
// The window can also be shown: a page that always holds what aligned words of it read as, for a guest that
// reads it in place of asking, without an exit. A driver reads InterruptStatus at every interrupt. Of a page,
// accesses of other widths read bytes of registers, which no driver does (4.2.2.2).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/bus/bus.h"
#include "devices/bus/interrupt_line.h"
#include "devices/virtio/transport/virtio_device.h"
#include "event/event_loop.h"
#include "memory/guest_memory.h"

namespace mayfly {

struct MmioQueueRegisters {
  std::uint32_t size = 0;  // descriptors
  bool ready = false;
  std::uint64_t descriptor_table = 0;
  std::uint64_t available_ring = 0;
  std::uint64_t used_ring = 0;

  friend bool operator==(const MmioQueueRegisters&, const MmioQueueRegisters&) = default;
};

// All that the transport remembers.
struct MmioTransportState {
  std::uint32_t status = 0;
  std::uint32_t device_features_select = 0;
  std::uint32_t driver_features_select = 0;
  std::uint64_t driver_features = 0;
  bool unknown_features = false;  // the driver accepted some past bit 63
  std::uint32_t queue_select = 0;
  std::uint32_t interrupt_status = 0;
  std::uint32_t generation = 0;
  std::vector<MmioQueueRegisters> queues;

  friend bool operator==(const MmioTransportState&, const MmioTransportState&) = default;
};

// Thread-safe as a BusDevice.
class MmioTransport final : public BusDevice, private VirtioTransport {
 public:
  static constexpr std::uint64_t kWindow = 0x1000;     // bytes
  static constexpr std::uint64_t kQueueNotify = 0x50;  // where the doorbell is
  static constexpr std::uint64_t kConfiguration = 0x100;
  static constexpr std::uint32_t kVendorId = 0x594c464d;  // "MFLY"

  // Status bits (2.1).
  static constexpr std::uint32_t kAcknowledge = 1;
  static constexpr std::uint32_t kDriver = 2;
  static constexpr std::uint32_t kDriverOk = 4;
  static constexpr std::uint32_t kFeaturesOk = 8;
  static constexpr std::uint32_t kDeviceNeedsReset = 64;
  static constexpr std::uint32_t kFailed = 128;

  // InterruptStatus bits.
  static constexpr std::uint32_t kUsedBuffers = 1;
  static constexpr std::uint32_t kConfigurationChanged = 2;

  // Everything is borrowed and outlives the transport, which is made and destroyed on the registrar's thread.
  // `shown`: kWindow bytes of zeroes, aligned as words, that the transport keeps equal to its window, or
  // nothing. Written here only, and never trusted: only InterruptStatus is read back, which is the guest's to
  // acknowledge anyway. Errors: those of an eventfd.
  static Result<std::unique_ptr<MmioTransport>> create(VirtioDevice& device, GuestMemory& memory,
                                                       InterruptLine& line, EventRegistrar& registrar,
                                                       std::span<std::uint32_t> shown = {});
  MmioTransport(const MmioTransport&) = delete;
  MmioTransport& operator=(const MmioTransport&) = delete;
  ~MmioTransport() override { device_.detach(); }

  void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) override;
  void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) override;

  // Signalling it calls the device's process(), whatever was written: for KVM's ioeventfd at kQueueNotify,
  // with which a doorbell does not leave the kernel. Without one, bus_write() signals it.
  const UniqueFd& doorbell() const { return doorbell_; }

  MmioTransportState state();
  // Makes a fresh transport what one was that said `state`, over a device that was restored before it;
  // `queues` is how far each of its queues had come, as the device's own state has it. A device that was live
  // goes on with them. What came while nobody was there to hear it is made up for: an interrupt where one was
  // not acknowledged, a look at the queues. Errors, after which the transport is as fresh as before:
  // kInvalidArgument for a state that no driver can have brought about, for features that this device does
  // not offer, and for queues that cannot be.
  Result<void> restore(const MmioTransportState& state,
                       std::span<const std::optional<VirtQueueState>> queues);

 private:
  MmioTransport(VirtioDevice& device, GuestMemory& memory, InterruptLine& line, UniqueFd doorbell,
                std::span<std::uint32_t> shown);

  void used_buffers() noexcept override;
  void configuration_changed() noexcept override;
  void needs_reset(std::string_view why) noexcept override;
  void process_later() noexcept override;

  void doorbell_rang();
  // The functions below are called under the device's lock.
  std::uint32_t read_register(std::uint64_t offset) const;
  void write_register(std::uint64_t offset, std::uint32_t value);
  void write_status(std::uint32_t value);
  void write_queue_register(std::uint64_t offset, std::uint32_t value);
  void stop_queue();
  void show_registers();
  void show_configuration();
  bool accepts_features() const;
  void activate();
  // The queues that are ready by `state`, as far as `progress` says; of an empty one, from their beginnings.
  Result<VirtioActivation> make_queues(const MmioTransportState& state,
                                       std::span<const std::optional<VirtQueueState>> progress) const;
  Result<void> check(const MmioTransportState& state) const;
  void reset();
  bool has_failed() const { return (state_.status & (kFailed | kDeviceNeedsReset)) != 0; }
  std::uint64_t offered_features() const { return device_.features() | kFeatureVersion1; }
  void interrupt(std::uint32_t reason) noexcept;
  // Without the lock: two accesses an interrupt. Where the window is shown, this is its word.
  std::atomic_ref<std::uint32_t> interrupt_status();

  VirtioDevice& device_;
  GuestMemory& memory_;
  InterruptLine& line_;
  UniqueFd doorbell_;
  std::span<std::uint32_t> shown_;  // empty: nobody looks
  MmioTransportState state_;        // guarded by the device's lock; interrupt_status is kept elsewhere
  std::uint32_t hidden_interrupt_status_ = 0;  // where nothing is shown
  std::unique_ptr<Watch> watch_;               // after doorbell_: goes first
};

}  // namespace mayfly
