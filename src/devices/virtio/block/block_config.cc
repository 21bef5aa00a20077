#include "devices/virtio/block/block_config.h"

#include "base/text.h"

namespace mayfly {

Result<void> BlockDeviceConfig::validate() const {
  if (!is_resource_id(id)) {
    return fail(ErrorCode::kInvalidArgument,
                "a drive's id must be 1 to 64 letters, digits and underscores: \"" + id + '"');
  }
  return check().map_error([this](const Error& error) { return error.within("drive " + id); });
}

Result<void> BlockDeviceConfig::check() const {
  const auto wrong = [](const std::string& what) { return fail(ErrorCode::kInvalidArgument, what); };
  if (path.empty()) {
    return wrong("no path of an image is given");
  }
  if (queue_count == 0 || queue_count > kMaxQueues) {
    return wrong("the number of queues must be from 1 to 16, not " + std::to_string(queue_count));
  }
  if (partuuid && !is_root) {
    return wrong("a partuuid is for the root device, which this drive is not");
  }
  if (overlay && read_only) {
    return wrong("an overlay takes what the guest writes, but the drive is read-only");
  }
  if (overlay && overlay->path && overlay->path->empty()) {
    return wrong("the overlay's path is empty; leave it out for an overlay in memory");
  }
  if (overlay && overlay->path == path) {
    return wrong("the overlay and the image it lies on are the same file, " + path);
  }
  return {};
}

}  // namespace mayfly
