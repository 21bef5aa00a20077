// The driver's side of the virtio-mmio transport, version 2, written from virtio 1.2, section 4.2.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "support/virtio_driver/split_ring.h"

namespace mayfly::testing {

// Register offsets: 4.2.2, table 4.1.
namespace mmio {
inline constexpr std::uint64_t kMagicValue = 0x000;
inline constexpr std::uint64_t kVersion = 0x004;
inline constexpr std::uint64_t kDeviceId = 0x008;
inline constexpr std::uint64_t kVendorId = 0x00c;
inline constexpr std::uint64_t kDeviceFeatures = 0x010;
inline constexpr std::uint64_t kDeviceFeaturesSel = 0x014;
inline constexpr std::uint64_t kDriverFeatures = 0x020;
inline constexpr std::uint64_t kDriverFeaturesSel = 0x024;
inline constexpr std::uint64_t kQueueSel = 0x030;
inline constexpr std::uint64_t kQueueNumMax = 0x034;
inline constexpr std::uint64_t kQueueNum = 0x038;
inline constexpr std::uint64_t kQueueReady = 0x044;
inline constexpr std::uint64_t kQueueNotify = 0x050;
inline constexpr std::uint64_t kInterruptStatus = 0x060;
inline constexpr std::uint64_t kInterruptAck = 0x064;
inline constexpr std::uint64_t kStatus = 0x070;
inline constexpr std::uint64_t kQueueDescLow = 0x080;
inline constexpr std::uint64_t kQueueDescHigh = 0x084;
inline constexpr std::uint64_t kQueueDriverLow = 0x090;
inline constexpr std::uint64_t kQueueDriverHigh = 0x094;
inline constexpr std::uint64_t kQueueDeviceLow = 0x0a0;
inline constexpr std::uint64_t kQueueDeviceHigh = 0x0a4;
inline constexpr std::uint64_t kShmSel = 0x0ac;
inline constexpr std::uint64_t kShmLenLow = 0x0b0;
inline constexpr std::uint64_t kShmLenHigh = 0x0b4;
inline constexpr std::uint64_t kShmBaseLow = 0x0b8;
inline constexpr std::uint64_t kShmBaseHigh = 0x0bc;
inline constexpr std::uint64_t kQueueReset = 0x0c0;
inline constexpr std::uint64_t kConfigGeneration = 0x0fc;
inline constexpr std::uint64_t kConfig = 0x100;
}  // namespace mmio

// Bits of the device status field: 2.1.
namespace device_status {
inline constexpr std::uint32_t kAcknowledge = 1;
inline constexpr std::uint32_t kDriver = 2;
inline constexpr std::uint32_t kDriverOk = 4;
inline constexpr std::uint32_t kFeaturesOk = 8;
inline constexpr std::uint32_t kNeedsReset = 64;
inline constexpr std::uint32_t kFailed = 128;
}  // namespace device_status

// Bits of InterruptStatus: 4.2.2.
inline constexpr std::uint32_t kUsedBufferNotification = 1;
inline constexpr std::uint32_t kConfigurationChangeNotification = 2;

// A device's register window. `offset` is from its base, `width` is in bytes.
class MmioWindow {
 public:
  virtual ~MmioWindow() = default;
  virtual std::uint64_t read(std::uint64_t offset, unsigned width) = 0;
  virtual void write(std::uint64_t offset, unsigned width, std::uint64_t value) = 0;
};

// Keeps to the specification; what does not is done by write_register() or through the window itself. Borrows
// the window. One thread.
class MmioDriver {
 public:
  explicit MmioDriver(MmioWindow& window) : window_(window) {}

  enum class Presence : std::uint8_t {
    kDevice,
    kNotVirtio,     // the magic value is another: nothing else was read
    kOtherVersion,  // not version 2: nothing else was read
    kPlaceholder,   // device id 0: no other register was read, nor may be
  };
  struct Identity {
    Presence presence = Presence::kNotVirtio;
    std::uint32_t device_id = 0;
    std::uint32_t vendor_id = 0;
  };
  // 4.2.3.1.1
  Identity probe();

  std::uint32_t read_register(std::uint64_t offset);
  void write_register(std::uint64_t offset, std::uint32_t value);

  // 2.1: bits are only ever added.
  std::uint32_t status() { return read_register(mmio::kStatus); }
  void add_status(std::uint32_t bits);
  bool needs_reset() { return (status() & device_status::kNeedsReset) != 0; }

  // 2.4: whether the device reported the reset complete, at once or soon.
  bool reset();

  std::uint64_t device_features();                     // both words
  void write_driver_features(std::uint64_t features);  // both words, offered or not

  // 3.1.1, steps 1 to 6: resets, takes what is offered of `wanted`, sets FEATURES_OK and reads it back. What
  // was agreed on; nothing, and FAILED set, where the device refused. VIRTIO_F_VERSION_1 is for the caller to
  // want: 6.1.
  std::optional<std::uint64_t> negotiate(std::uint64_t wanted);
  // Step 8.
  void driver_ok() { add_status(device_status::kDriverOk); }

  // 4.2.3.2. 0: there is no such queue.
  std::uint32_t max_queue_size(std::uint16_t queue);
  // Whether the queue was there, not in use, large enough, and read as ready afterwards.
  bool set_up_queue(std::uint16_t queue, const RingLayout& layout);
  bool stop_queue(std::uint16_t queue);

  void notify(std::uint16_t queue) { write_register(mmio::kQueueNotify, queue); }

  // 4.2.3.4.1: reads InterruptStatus and acknowledges what it knows of it, which is what it returns.
  std::uint32_t handle_interrupt();

  // Fields of the device's configuration space, by their offset in it, with the width that 4.2.2.2 asks for.
  std::uint8_t config_u8(std::uint64_t offset);
  std::uint16_t config_u16(std::uint64_t offset);
  std::uint32_t config_u32(std::uint64_t offset);
  std::uint64_t config_u64(std::uint64_t offset);  // two reads: see read_config_consistently()
  void write_config_u8(std::uint64_t offset, std::uint8_t value);
  void write_config_u16(std::uint64_t offset, std::uint16_t value);
  void write_config_u32(std::uint64_t offset, std::uint32_t value);

  // 2.5.1: calls `read_fields` until the generation is the same before and after. False where the device
  // never held still.
  bool read_config_consistently(const std::function<void()>& read_fields);

 private:
  void select_queue(std::uint16_t queue) { write_register(mmio::kQueueSel, queue); }
  void write_address(std::uint64_t low_register, std::uint64_t high_register, std::uint64_t address);

  MmioWindow& window_;
};

}  // namespace mayfly::testing
