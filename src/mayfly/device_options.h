// The values of the flags that give a microVM its drives and networks.
#pragma once

#include <string_view>

#include "base/result.h"
#include "devices/virtio/block/block_config.h"
#include "devices/virtio/net/net_config.h"

namespace mayfly {

// IMAGE[:ro][:overlay[=FILE]]: a path, then what is to be different about it, in any order. `ro` is for
// reading only; with `overlay` the image stays as it is and what the guest writes goes to FILE or, without
// one, to memory. A path may have other colons in it. Errors (kInvalidArgument) say what is wrong.
Result<BlockDeviceConfig> parse_drive_option(std::string_view text);

// tap=NAME or user, then with commas between them: mac=MAC, mtu=BYTES, queues=PAIRS; and for user
// forward=SPEC (see parse_port_forward(); as often as needed) and host-loopback. Errors as above.
Result<NetDeviceConfig> parse_network_option(std::string_view text);

}  // namespace mayfly
