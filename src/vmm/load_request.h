// What a microVM is to go on from, and what of it is to be another: plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "devices/virtio/block/block_config.h"
#include "vmm/config.h"

namespace mayfly {

// Another tap for an interface of a snapshot's, and another address.
struct NetworkOverride {
  std::string id;
  std::optional<std::string> tap{};
  std::optional<std::string> mac{};  // as MacAddress::parse() reads it; of a request for clones _numbered()
};

// Another image for a drive of a snapshot's, of the same size, and another overlay: that of the clone alone.
struct DriveOverride {
  std::string id;
  std::optional<std::string> path;
  std::optional<BlockOverlayConfig> overlay;
};

// What a microVM goes on from.
struct LoadRequest {
  std::string state_path{};
  // The memory file; or the socket of a process that brings the pages (memory/userfault.h).
  std::string memory_path{};
  bool memory_from_handler = false;
  bool track_dirty_pages = false;
  std::optional<HugePages> huge_pages{};  // absent: as they were
  // The guest's clock has gone on since; otherwise it goes on from where it stood.
  bool advance_clock = false;
  bool resume = false;  // at once; otherwise it is paused
  std::vector<NetworkOverride> networks{};
  std::vector<DriveOverride> drives{};
  std::optional<std::string> metadata{};  // JSON; takes the place of what was put
  // Which pages of the memory file the guest touches is recorded, until take_working_set(); or those that
  // another one touched are read ahead of it, by the file that was written then. Not both.
  bool record_working_set = false;
  std::optional<std::string> working_set_path{};
};

// Where one device is named for the same thing twice: either could be meant.
struct RepeatedOverride {
  enum class Kind : std::uint8_t { kDrive, kTap, kMac };
  Kind kind;
  std::string id;
};
// The first one. A tap and an address for one interface are apart.
std::optional<RepeatedOverride> find_repeated_override(const LoadRequest& request);

}  // namespace mayfly
