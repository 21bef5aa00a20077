// passt as a network device's other end: a stream socket on which every frame follows its length, 4 bytes
// with the most significant first. There are no headers and no offloads; frames may be as large as the MTU.
// What comes is not trusted: a length beyond kMaxFrame closes the link before a byte of it is passed on.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/unique_fd.h"
#include "devices/virtio/net/net_backend.h"
#include "devices/virtio/net/passt_process.h"

namespace mayfly {

// Frames to the driver are gathered: one system call for as many as there are, up to kInput bytes, and a copy
// each. Frames from the driver go out as they lie; where the socket takes a part of one, the others are kept
// and go first.
class PasstBackend final : public NetBackend {
 public:
  // `socket` is connected. `process` is whoever is at its other end, or nobody of ours.
  explicit PasstBackend(UniqueFd socket, std::unique_ptr<PasstProcess> process = nullptr);
  ~PasstBackend() override = default;

  std::size_t pairs() const override { return 1; }
  NetPort& port(std::size_t /*pair*/) override { return port_; }
  NetOffloads offloads() const override { return {}; }
  Result<void> set_offloads(const NetOffloads& /*offloads*/) override { return {}; }
  Result<void> use_pairs(std::size_t /*pairs*/) override { return {}; }

 private:
  class Port final : public NetPort {
   public:
    Port(UniqueFd socket, PasstProcess* process);
    int fd() const override { return socket_.get(); }
    Status send(const NetHeader& header, ChainReader frame) override;
    bool unsent() const override { return out_start_ != out_end_; }
    Status flush() override;
    Received receive(NetHeader& header, ChainWriter frame, std::span<std::byte> rest) override;

   private:
    static constexpr std::size_t kLength = 4;  // bytes before each frame
    static constexpr std::size_t kInput = 2 * (kLength + kMaxFrame);
    static constexpr std::size_t kOutput = kLength + kMaxFrame;

    // Whether the length that comes next, as far as it is there, is one that a frame can have. To be asked
    // before next(): whoever is at the other end may send what it likes, and in one piece.
    bool length_is_possible() const;
    // The bytes of the next frame, with its length, or nothing where they are not all there yet.
    std::optional<std::span<const std::byte>> next() const;
    Status fill();
    Status closed(const char* why);

    UniqueFd socket_;
    PasstProcess* process_;
    UntouchedBytes in_;
    std::size_t in_start_ = 0;
    std::size_t in_end_ = 0;
    UntouchedBytes out_;  // what is left of a frame that went out in part
    std::size_t out_start_ = 0;
    std::size_t out_end_ = 0;
    std::vector<iovec> pieces_;
    bool closed_ = false;
  };

  std::unique_ptr<PasstProcess> process_;
  Port port_;
};

}  // namespace mayfly
