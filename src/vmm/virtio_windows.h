// The register windows of all virtio devices as memory: what a guest may read without leaving its vCPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"

namespace mayfly {

// Owns the pages, which start as zeroes; movable. Written by the devices' transports
// (MmioTransport::create()), mapped read-only into the guest (ReadOnlyPages), and so outlives both.
class VirtioWindows {
 public:
  // Of `count` devices, one behind the other. Error kExhausted where the host cannot map them.
  static Result<VirtioWindows> create(std::size_t count);

  VirtioWindows(VirtioWindows&& other) noexcept;
  VirtioWindows& operator=(VirtioWindows&&) = delete;
  VirtioWindows(const VirtioWindows&) = delete;
  VirtioWindows& operator=(const VirtioWindows&) = delete;
  ~VirtioWindows();

  std::span<const std::uint32_t> all() const { return words_; }
  std::span<std::uint32_t> window(std::size_t index) const;

 private:
  explicit VirtioWindows(std::span<std::uint32_t> words) : words_(words) {}

  std::span<std::uint32_t> words_;  // a mapping of its own, or none
};

}  // namespace mayfly
