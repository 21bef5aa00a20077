#include "vmm/virtio_windows.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "devices/virtio/transport/mmio_transport.h"

namespace mayfly {
namespace {

constexpr std::size_t kWords = MmioTransport::kWindow / sizeof(std::uint32_t);

}  // namespace

Result<VirtioWindows> VirtioWindows::create(std::size_t count) {
  if (count == 0) {
    return VirtioWindows({});
  }
  void* const host = ::mmap(nullptr, count * MmioTransport::kWindow, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (host == MAP_FAILED) {
    return fail_errno(errno, "map the register windows of the virtio devices");
  }
  // SAFETY: fresh pages of zeroes are words, and aligned as such.
  return VirtioWindows(std::span(static_cast<std::uint32_t*>(host), count * kWords));
}

VirtioWindows::VirtioWindows(VirtioWindows&& other) noexcept : words_(std::exchange(other.words_, {})) {}

VirtioWindows::~VirtioWindows() {
  if (!words_.empty()) {
    ::munmap(words_.data(), words_.size_bytes());
  }
}

std::span<std::uint32_t> VirtioWindows::window(std::size_t index) const {
  return words_.subspan(index * kWords, kWords);
}

}  // namespace mayfly
