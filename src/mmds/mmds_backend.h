// The metadata service on a network device's cable.
#pragma once

#include <memory>

#include "devices/virtio/net/net_backend.h"
#include "mmds/mmds.h"
#include "mmds/responder.h"

namespace mayfly {

// `backend` with the metadata service in front of it: frames of the guest's to the service's address are
// taken and answered here; all others pass as they are, and so does everything from `backend`. Of each frame
// the first bytes are copied, to be judged; one that is taken is copied whole, once.
//
// To be wired so, for each interface that MmdsConfig::network_interfaces names, one Mmds for all of them:
//
//   MAYFLY_TRY_ASSIGN(auto backend, network.open_backend());
//   backend = with_mmds(std::move(backend), mmds, {.address = config.ipv4_address, .mtu = mtu});
//   NetDevice::create(network.settings(), std::move(backend), registrar);
//
// where `mtu` is what the driver is told, if anything.
std::unique_ptr<NetBackend> with_mmds(std::unique_ptr<NetBackend> backend, std::shared_ptr<Mmds> mmds,
                                      const ResponderSettings& settings = {});

}  // namespace mayfly
