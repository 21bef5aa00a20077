#include "devices/virtio/block/sync_engine.h"

#include "devices/virtio/block/file_io.h"

namespace mayfly {

std::optional<IoResult> SyncEngine::submit(std::uint32_t /*token*/, const IoOperation& operation) {
  switch (operation.kind) {
    case IoOperation::Kind::kRead:
      return file_io::read_all(fd_, operation.buffers, operation.offset);
    case IoOperation::Kind::kWrite:
      return file_io::write_all(fd_, operation.buffers, operation.offset, operation.durable);
    case IoOperation::Kind::kFlush:
      return file_io::flush(fd_);
    case IoOperation::Kind::kDiscard: {
      // Advice only: where the host cannot follow it, nothing is lost.
      const IoResult punched = file_io::punch_hole(fd_, operation.offset, operation.length);
      return file_io::is_unsupported(punched.os_errno) ? IoResult{} : punched;
    }
    case IoOperation::Kind::kZero:
      return file_io::zero_range(fd_, operation.offset, operation.length);
    case IoOperation::Kind::kZeroAndFree: {
      const IoResult punched = file_io::punch_hole(fd_, operation.offset, operation.length);
      return file_io::is_unsupported(punched.os_errno)
                 ? file_io::zero_range(fd_, operation.offset, operation.length)
                 : punched;
    }
  }
  return IoResult{};
}

}  // namespace mayfly
