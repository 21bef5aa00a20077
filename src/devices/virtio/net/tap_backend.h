// A tap interface of the host as a network device's other end.
#pragma once

#include <sys/uio.h>

#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "devices/virtio/net/net_backend.h"

namespace mayfly {

// The tap may be there already (made by `ip tuntap add`, persistent) or is made, and then goes with us: that
// needs CAP_NET_ADMIN. It is not brought up, given an address or joined to a bridge: that is for whoever
// runs the host.
class TapBackend final : public NetBackend {
 public:
  // Opens `tap` with as many queues as `pairs` (1 to 8). Errors name the tap, the cause and a way out:
  // kNotFound (no /dev/net/tun), kPermission, kBusy (another has it), kInvalidArgument (another kind of
  // interface, or one made for one queue where more are asked for, or the reverse), what the host reports.
  static Result<std::unique_ptr<TapBackend>> open(const std::string& tap, std::size_t pairs);
  ~TapBackend() override = default;

  std::size_t pairs() const override { return ports_.size(); }
  NetPort& port(std::size_t pair) override { return ports_[pair]; }
  NetOffloads offloads() const override { return offloads_; }
  Result<void> set_offloads(const NetOffloads& offloads) override;
  Result<void> use_pairs(std::size_t pairs) override;

 private:
  class Port final : public NetPort {
   public:
    explicit Port(UniqueFd fd);
    int fd() const override { return fd_.get(); }
    Status send(const NetHeader& header, ChainReader frame) override;
    Received receive(NetHeader& header, ChainWriter frame, std::span<std::byte> rest) override;

    bool attached = true;  // to the interface: only such a queue is given frames

   private:
    UniqueFd fd_;
    std::vector<iovec> pieces_;  // kept from frame to frame
  };

  TapBackend(std::string tap, std::vector<Port> ports);

  std::string tap_;
  std::vector<Port> ports_;
  NetOffloads offloads_;
};

}  // namespace mayfly
