#include "devices/virtio/block/sync_engine.h"

#include "devices/virtio/block/file_io.h"

namespace mayfly {

std::optional<IoResult> SyncEngine::submit(std::uint32_t /*token*/, const IoOperation& operation) {
  return file_io::perform(fd_, operation);
}

}  // namespace mayfly
