// The virtio devices that a configuration asks for.
#pragma once

#include <memory>
#include <vector>

#include "base/result.h"
#include "devices/virtio/transport/virtio_device.h"
#include "event/event_loop.h"
#include "vmm/config.h"

namespace mayfly {

// Opens all files, taps and sockets that the drives and networks of `config` name, and makes their devices:
// the root drive first, so that it is /dev/vda, then the drives, then the networks, each in their order. The
// registrar outlives the devices. Errors name the drive or the interface, the cause and the way out; nothing
// is left behind by one.
Result<std::vector<std::unique_ptr<VirtioDevice>>> make_virtio_devices(const VmConfig& config,
                                                                       EventRegistrar& registrar);

}  // namespace mayfly
