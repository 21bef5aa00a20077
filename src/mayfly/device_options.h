// The values of the flags that give a microVM its drives and networks.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "devices/virtio/block/block_config.h"
#include "devices/virtio/net/net_config.h"

namespace mayfly {

// IMAGE[:ro][:overlay[=FILE]]: a path, then what is to be different about it, in any order. `ro` is for
// reading only; with `overlay` the image stays as it is and what the guest writes goes to FILE or, without
// one, to memory. A path may have other colons in it. Errors (kInvalidArgument) say what is wrong.
Result<BlockDeviceConfig> parse_drive_option(std::string_view text);

// Which words may stand behind an image.
enum class DriveWords : std::uint8_t { kAll, kOverlayOnly };

// Whether `path`, as it was left by parse_drive_option(), ends in a word that is none: nothing of that name
// is there, and an image is whose name ends at a colon of it, or the word is a slip of one. In paths with
// "{id}" or "{n}", whose files are not known yet, only a slip is one. Error kInvalidArgument: the word, what
// may stand there, and what was likely meant. `exists`: whether there is a file of that path.
Result<void> check_drive_words(const std::string& path, DriveWords words,
                               const std::function<bool(const std::string&)>& exists);

// tap=NAME or user, then with commas between them: mac=MAC, mtu=BYTES, queues=PAIRS; and for user
// forward=SPEC (see parse_port_forward(); as often as needed) and host-loopback. Errors as above.
Result<NetDeviceConfig> parse_network_option(std::string_view text);

}  // namespace mayfly
