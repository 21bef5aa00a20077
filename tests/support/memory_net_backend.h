// The other end of a network device's cable in memory, for tests, benchmarks and fuzz targets.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/unique_fd.h"
#include "devices/virtio/net/net_backend.h"

namespace mayfly::testing {

struct NetFrame {
  NetHeader header{};
  std::vector<std::byte> bytes{};

  friend bool operator==(const NetFrame&, const NetFrame&) = default;
};

// A port whose frames a test puts in and takes out. Its descriptor is never ready by itself: a test that
// wants the device to look calls the registrar.
class MemoryNetPort final : public NetPort {
 public:
  MemoryNetPort() : fd_(make_eventfd().value()) {}

  int fd() const override { return fd_.get(); }

  Status send(const NetHeader& header, ChainReader frame) override {
    ++send_calls;
    if (next_send != Status::kDone) {
      return next_send;
    }
    if (room == 0) {
      return Status::kWouldBlock;
    }
    --room;
    NetFrame sent{header, std::vector<std::byte>(frame.remaining())};
    frame.read(sent.bytes);
    from_driver.push_back(std::move(sent));
    return Status::kDone;
  }

  Received receive(NetHeader& header, ChainWriter frame, std::span<std::byte> rest) override {
    ++receive_calls;
    last_room = frame.remaining();
    if (to_driver.empty()) {
      return {closed ? Status::kClosed : Status::kWouldBlock, 0};
    }
    const NetFrame next = std::move(to_driver.front());
    to_driver.pop_front();
    const std::span<const std::byte> bytes(next.bytes);
    const std::size_t here = std::min<std::size_t>(bytes.size(), frame.remaining());
    header = next.header;
    frame.write(bytes.first(here));
    const std::size_t more = std::min(bytes.size() - here, rest.size());
    std::ranges::copy(bytes.subspan(here, more), rest.begin());
    return {Status::kDone, here + more};
  }

  std::optional<std::chrono::nanoseconds> own_frame_in() override {
    return to_driver.empty() ? std::nullopt : own_in;
  }

  std::deque<NetFrame> to_driver;
  std::optional<std::chrono::nanoseconds> own_in{};  // frames in to_driver are the port's own, and ready then
  std::vector<NetFrame> from_driver;
  std::size_t room = SIZE_MAX;  // frames that send() takes before it would block
  Status next_send = Status::kDone;
  bool closed = false;
  std::uint64_t last_room = 0;  // bytes for a frame that the last receive() was given in buffers
  std::size_t send_calls = 0;
  std::size_t receive_calls = 0;

 private:
  UniqueFd fd_;
};

class MemoryNetBackend final : public NetBackend {
 public:
  explicit MemoryNetBackend(std::size_t pairs = 1, NetOffloads offloads = {.checksum = true,
                                                                           .tso4 = true,
                                                                           .tso6 = true,
                                                                           .ufo = true})
      : offloads_(offloads), ports_(pairs) {}

  std::size_t pairs() const override { return ports_.size(); }
  MemoryNetPort& port(std::size_t pair) override { return ports_[pair]; }
  NetOffloads offloads() const override { return offloads_; }
  Result<void> set_offloads(const NetOffloads& offloads) override {
    set = offloads;
    return {};
  }
  Result<void> use_pairs(std::size_t pairs) override {
    in_use = pairs;
    ++use_pairs_calls;
    return {};
  }

  std::optional<NetOffloads> set{};
  std::optional<std::size_t> in_use{};
  std::size_t use_pairs_calls = 0;

 private:
  NetOffloads offloads_;
  std::vector<MemoryNetPort> ports_;
};

}  // namespace mayfly::testing
