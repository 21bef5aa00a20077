#include "vmm/virtio_devices.h"

#include <utility>

#include "devices/virtio/block/block_device.h"
#include "devices/virtio/net/net_device.h"

namespace mayfly {
namespace {

Result<std::unique_ptr<VirtioDevice>> make_network(const NetDeviceConfig& config, EventRegistrar& registrar) {
  MAYFLY_TRY_ASSIGN(auto backend, config.open_backend());
  NetDeviceSettings settings{.id = config.id,
                             .mac = config.mac ? *config.mac : MacAddress::generate(),
                             .rx_rate_limiter = config.rx_rate_limiter,
                             .tx_rate_limiter = config.tx_rate_limiter};
  // The largest frames that passt takes, as nothing cuts them there.
  const bool is_user = std::holds_alternative<UserNetConfig>(config.backend);
  if (config.mtu || is_user) {
    settings.mtu = static_cast<std::uint16_t>(config.mtu.value_or(kMaxUserMtu));
  }
  return NetDevice::create(settings, std::move(backend), registrar);
}

}  // namespace

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
    MAYFLY_TRY_ASSIGN(auto device, make_network(network, registrar));
    devices.push_back(std::move(device));
  }
  return devices;
}

}  // namespace mayfly
