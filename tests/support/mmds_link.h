// The metadata service's end of a cable, with guest memory between it and a test.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "memory/guest_memory.h"
#include "mmds/mmds_backend.h"
#include "support/memory_net_backend.h"

namespace mayfly::testing {

// Frames go in and come out as a network device would carry them. Throws where guest memory fails the test.
class MmdsLink {
 public:
  MmdsLink(std::shared_ptr<Mmds> mmds, const ResponderSettings& settings, std::size_t pairs = 1)
      : memory_(GuestMemory::create(std::vector{GuestRange::make(GuestAddress(0), kRam).value()},
                                    Backing::kAnonymous)
                    .value()),
        rest_(NetPort::kRest) {
    auto inner = std::make_unique<MemoryNetBackend>(pairs);
    inner_ = inner.get();
    backend_ = with_mmds(std::move(inner), std::move(mmds), settings);
  }

  NetBackend& backend() { return *backend_; }
  MemoryNetBackend& inner() { return *inner_; }

  // A frame of a byte at least, in two slices, of which the first has `cut` bytes at most.
  NetPort::Status send(std::span<const std::byte> frame, const NetHeader& header = {}, std::size_t pair = 0,
                       std::size_t cut = 20) {
    if (!memory_.write(GuestAddress(0), frame)) {
      throw std::runtime_error("a frame larger than the test's memory");
    }
    const std::size_t first = std::clamp<std::size_t>(cut, 1, frame.size());
    slices_ = {memory_.slice(GuestAddress(0), first).value()};
    if (first != frame.size()) {
      slices_.push_back(memory_.slice(GuestAddress(first), frame.size() - first).value());
    }
    return backend_->port(pair).send(header, ChainReader(slices_));
  }

  // A frame that the guest is given where it offers `room` bytes of buffers, or nothing.
  std::optional<NetFrame> receive(std::size_t room = 2000, std::size_t pair = 0) {
    slices_ = {memory_.slice(GuestAddress(0), room).value()};
    NetFrame frame;
    const auto received = backend_->port(pair).receive(frame.header, ChainWriter(slices_), rest_);
    if (received.status != NetPort::Status::kDone) {
      return std::nullopt;
    }
    frame.bytes.resize(received.bytes);
    const std::size_t here = std::min(room, received.bytes);
    if (!memory_.read(GuestAddress(0), std::span(frame.bytes).first(here))) {
      throw std::runtime_error("more room than the test's memory has");
    }
    std::copy_n(rest_.begin(), received.bytes - here,
                frame.bytes.begin() + static_cast<std::ptrdiff_t>(here));
    return frame;
  }

  std::optional<std::chrono::nanoseconds> own_frame_in(std::size_t pair = 0) {
    return backend_->port(pair).own_frame_in();
  }

 private:
  static constexpr std::uint64_t kRam = 1 << 20;

  GuestMemory memory_;
  std::vector<GuestSlice> slices_;
  std::vector<std::byte> rest_;
  MemoryNetBackend* inner_ = nullptr;
  std::unique_ptr<NetBackend> backend_;
};

}  // namespace mayfly::testing
