// What stands behind a network device on the host: the other end of its cable.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/result.h"
#include "devices/virtio/net/net_header.h"
#include "devices/virtio/queue/chain.h"

namespace mayfly {

// Bytes that cost no memory before they are written.
// NOLINTBEGIN(modernize-avoid-c-arrays): a vector would write them all
using UntouchedBytes = std::unique_ptr<std::byte[]>;
inline UntouchedBytes make_untouched_bytes(std::size_t size) {
  return std::make_unique_for_overwrite<std::byte[]>(size);
}
// NOLINTEND(modernize-avoid-c-arrays)

// The cable of one queue pair. Used by one device, under its lock, on the monitor thread; never waits and,
// but for its first frames, never allocates.
class NetPort {
 public:
  enum class Status : std::uint8_t {
    kDone,
    kWouldBlock,  // nothing was done; the descriptor becomes ready when it makes sense to try again
    kFailed,      // this frame is lost, the next may not be
    kClosed,      // the other end is gone for good
  };
  struct Received {
    Status status = Status::kWouldBlock;
    std::size_t bytes = 0;  // of the frame, without its header
  };

  static constexpr std::size_t kRest = kMaxFrame + 1;

  virtual ~NetPort() = default;

  // To be watched for frames that came, and for room where send() or flush() would have blocked.
  virtual int fd() const = 0;

  // Sends what remains of `frame`, which follows `header`. The guest may change the frame's bytes meanwhile;
  // `header` was checked.
  virtual Status send(const NetHeader& header, ChainReader frame) = 0;

  // Whether something that send() took waits for room; and another try at it. A send() does the same first.
  virtual bool unsent() const { return false; }
  virtual Status flush() { return Status::kDone; }

  // Receives a frame: its header, then its bytes into `frame` and where that is too small the others into
  // `rest`, which has kRest bytes. A frame of more than kMaxFrame is lost, and reports more than that. Room
  // that the frame does not need may be overwritten all the same.
  virtual Received receive(NetHeader& header, ChainWriter frame, std::span<std::byte> rest) = 0;

  // How long until receive() has a frame that the descriptor does not tell of, for the port makes it itself:
  // zero or less: it has one now, as long as that is not received. Nothing: none before another send(). Asked
  // after every turn.
  virtual std::optional<std::chrono::nanoseconds> own_frame_in() { return std::nullopt; }
};

// All pairs of one device. Calls as for a NetPort.
class NetBackend {
 public:
  virtual ~NetBackend() = default;

  virtual std::size_t pairs() const = 0;  // 1 to 8, constant
  virtual NetPort& port(std::size_t pair) = 0;

  // What it can do for the frames of a driver, and would leave to a driver that can do it. Constant.
  virtual NetOffloads offloads() const = 0;
  // What the driver can do: frames that are received from now on ask it for no more. A subset of offloads().
  virtual Result<void> set_offloads(const NetOffloads& offloads) = 0;
  // Frames come at the first `pairs` ports only from now on, steered by flow (5.1.6.5.5).
  virtual Result<void> use_pairs(std::size_t pairs) = 0;
};

}  // namespace mayfly
