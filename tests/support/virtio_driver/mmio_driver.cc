#include "support/virtio_driver/mmio_driver.h"

namespace mayfly::testing {
namespace {

constexpr std::uint32_t kMagic = 0x74726976;
constexpr std::uint32_t kTransportVersion = 2;
// How often a register is read again before the driver gives up on it.
constexpr int kPatience = 1000;

}  // namespace

std::uint32_t MmioDriver::read_register(std::uint64_t offset) {
  return static_cast<std::uint32_t>(window_.read(offset, 4));
}

void MmioDriver::write_register(std::uint64_t offset, std::uint32_t value) {
  window_.write(offset, 4, value);
}

MmioDriver::Identity MmioDriver::probe() {
  Identity found;
  if (read_register(mmio::kMagicValue) != kMagic) {
    return found;
  }
  if (read_register(mmio::kVersion) != kTransportVersion) {
    found.presence = Presence::kOtherVersion;
    return found;
  }
  found.device_id = read_register(mmio::kDeviceId);
  if (found.device_id == 0) {
    found.presence = Presence::kPlaceholder;
    return found;
  }
  found.presence = Presence::kDevice;
  found.vendor_id = read_register(mmio::kVendorId);
  return found;
}

void MmioDriver::add_status(std::uint32_t bits) {
  write_register(mmio::kStatus, status() | bits);
}

bool MmioDriver::reset() {
  write_register(mmio::kStatus, 0);
  for (int i = 0; i < kPatience; ++i) {
    if (status() == 0) {
      return true;
    }
  }
  return false;
}

std::uint64_t MmioDriver::device_features() {
  write_register(mmio::kDeviceFeaturesSel, 0);
  const std::uint64_t low = read_register(mmio::kDeviceFeatures);
  write_register(mmio::kDeviceFeaturesSel, 1);
  const std::uint64_t high = read_register(mmio::kDeviceFeatures);
  return low | high << 32;
}

void MmioDriver::write_driver_features(std::uint64_t features) {
  write_register(mmio::kDriverFeaturesSel, 0);
  write_register(mmio::kDriverFeatures, static_cast<std::uint32_t>(features));
  write_register(mmio::kDriverFeaturesSel, 1);
  write_register(mmio::kDriverFeatures, static_cast<std::uint32_t>(features >> 32));
}

std::optional<std::uint64_t> MmioDriver::negotiate(std::uint64_t wanted) {
  if (!reset()) {
    return std::nullopt;
  }
  add_status(device_status::kAcknowledge);
  add_status(device_status::kDriver);
  const std::uint64_t agreed = device_features() & wanted;
  write_driver_features(agreed);
  add_status(device_status::kFeaturesOk);
  if ((status() & device_status::kFeaturesOk) == 0) {
    add_status(device_status::kFailed);
    return std::nullopt;
  }
  return agreed;
}

std::uint32_t MmioDriver::max_queue_size(std::uint16_t queue) {
  select_queue(queue);
  return read_register(mmio::kQueueNumMax);
}

void MmioDriver::write_address(std::uint64_t low_register, std::uint64_t high_register,
                               std::uint64_t address) {
  write_register(low_register, static_cast<std::uint32_t>(address));
  write_register(high_register, static_cast<std::uint32_t>(address >> 32));
}

bool MmioDriver::set_up_queue(std::uint16_t queue, const RingLayout& layout) {
  select_queue(queue);
  if (read_register(mmio::kQueueReady) != 0 || read_register(mmio::kQueueNumMax) < layout.size) {
    return false;
  }
  write_register(mmio::kQueueNum, layout.size);
  write_address(mmio::kQueueDescLow, mmio::kQueueDescHigh, layout.descriptors);
  write_address(mmio::kQueueDriverLow, mmio::kQueueDriverHigh, layout.available);
  write_address(mmio::kQueueDeviceLow, mmio::kQueueDeviceHigh, layout.used);
  write_register(mmio::kQueueReady, 1);
  return read_register(mmio::kQueueReady) == 1;
}

bool MmioDriver::stop_queue(std::uint16_t queue) {
  select_queue(queue);
  write_register(mmio::kQueueReady, 0);
  return read_register(mmio::kQueueReady) == 0;
}

std::uint32_t MmioDriver::handle_interrupt() {
  const std::uint32_t events =
      read_register(mmio::kInterruptStatus) & (kUsedBufferNotification | kConfigurationChangeNotification);
  if (events != 0) {
    write_register(mmio::kInterruptAck, events);
  }
  return events;
}

std::uint8_t MmioDriver::config_u8(std::uint64_t offset) {
  return static_cast<std::uint8_t>(window_.read(mmio::kConfig + offset, 1));
}

std::uint16_t MmioDriver::config_u16(std::uint64_t offset) {
  return static_cast<std::uint16_t>(window_.read(mmio::kConfig + offset, 2));
}

std::uint32_t MmioDriver::config_u32(std::uint64_t offset) {
  return read_register(mmio::kConfig + offset);
}

std::uint64_t MmioDriver::config_u64(std::uint64_t offset) {
  const std::uint64_t low = config_u32(offset);
  return low | static_cast<std::uint64_t>(config_u32(offset + 4)) << 32;
}

void MmioDriver::write_config_u8(std::uint64_t offset, std::uint8_t value) {
  window_.write(mmio::kConfig + offset, 1, value);
}

void MmioDriver::write_config_u16(std::uint64_t offset, std::uint16_t value) {
  window_.write(mmio::kConfig + offset, 2, value);
}

void MmioDriver::write_config_u32(std::uint64_t offset, std::uint32_t value) {
  window_.write(mmio::kConfig + offset, 4, value);
}

bool MmioDriver::read_config_consistently(const std::function<void()>& read_fields) {
  for (int i = 0; i < kPatience; ++i) {
    const std::uint32_t before = read_register(mmio::kConfigGeneration);
    read_fields();
    if (read_register(mmio::kConfigGeneration) == before) {
      return true;
    }
  }
  return false;
}

}  // namespace mayfly::testing
