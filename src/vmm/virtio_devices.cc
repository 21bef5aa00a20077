#include "vmm/virtio_devices.h"

#include <utility>

#include "devices/virtio/block/block_device.h"
#include "devices/virtio/net/net_device.h"

namespace mayfly {
Result<std::vector<std::unique_ptr<VirtioDevice>>> make_virtio_devices(const VmConfig& config,
                                                                       EventRegistrar& registrar) {
  MAYFLY_TRY(config.validate_devices());
  std::vector<std::unique_ptr<VirtioDevice>> devices;
  for (const bool root : {true, false}) {
    for (const BlockDeviceConfig& drive : config.drives) {
      if (drive.is_root == root) {
        MAYFLY_TRY_ASSIGN(auto device, BlockDevice::create(drive, registrar));
        devices.push_back(std::move(device));
      }
    }
  }
  for (const NetDeviceConfig& network : config.networks) {
    MAYFLY_TRY_ASSIGN(auto backend, network.open_backend());
    MAYFLY_TRY_ASSIGN(auto device, NetDevice::create(network.settings(), std::move(backend), registrar));
    devices.push_back(std::move(device));
  }
  return devices;
}

}  // namespace mayfly
