#include "devices/virtio/queue/chain.h"

namespace mayfly {

SliceCursor::SliceCursor(std::span<const GuestSlice> slices) : slices_(slices) {
  for (const GuestSlice& slice : slices) {
    remaining_ += slice.size();
  }
}

bool SliceCursor::skip(std::uint64_t bytes) {
  if (bytes > remaining_) {
    return false;
  }
  consume(bytes, [](const GuestSlice&) {});
  return true;
}

bool SliceCursor::take(std::uint64_t bytes, std::vector<iovec>& to) {
  if (bytes > remaining_) {
    return false;
  }
  consume(bytes, [&to](const GuestSlice& part) { to.push_back(part.for_system_call()); });
  return true;
}

bool ChainReader::read(std::span<std::byte> destination) {
  if (destination.size() > remaining()) {
    return false;
  }
  consume(destination.size(), [&destination](const GuestSlice& part) {
    part.copy_to(destination.first(part.size()));
    destination = destination.subspan(part.size());
  });
  return true;
}

bool ChainWriter::write(std::span<const std::byte> source) {
  if (source.size() > remaining()) {
    return false;
  }
  consume(source.size(), [&source](const GuestSlice& part) {
    part.copy_from(source.first(part.size()));
    source = source.subspan(part.size());
  });
  return true;
}

bool ChainWriter::write_zeroes(std::uint64_t bytes) {
  if (bytes > remaining()) {
    return false;
  }
  consume(bytes, [](const GuestSlice& part) { part.fill(std::byte{0}); });
  return true;
}

void DescriptorChain::Storage::end() {
  if (memory.notes_writes()) [[unlikely]] {
    for (const GuestSlice& slice : std::span(slices).subspan(readable_count)) {
      memory.note_written(slice.address(), slice.size());
    }
  }
  slices.clear();
  readable_count = 0;
}

}  // namespace mayfly
