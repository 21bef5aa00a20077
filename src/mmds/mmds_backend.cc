#include "mmds/mmds_backend.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

namespace mayfly {
namespace {

class MmdsPort final : public NetPort {
 public:
  MmdsPort(NetPort& inner, Responder& responder) : inner_(inner), responder_(responder) {}

  int fd() const override { return inner_.fd(); }
  bool unsent() const override { return inner_.unsent(); }
  Status flush() override { return inner_.flush(); }

  Status send(const NetHeader& header, ChainReader frame) override {
    std::array<std::byte, Responder::kPeek> bytes;
    const auto start = std::span(bytes).first(std::min<std::size_t>(frame.remaining(), bytes.size()));
    ChainReader rest = frame;
    rest.read(start);
    if (!responder_.concerns(start)) {
      return inner_.send(header, frame);
    }
    take(header, start, rest);
    return Status::kDone;
  }

  Received receive(NetHeader& header, ChainWriter frame, std::span<std::byte> rest) override {
    if (responder_.ready()) {
      if (const std::size_t size = give(frame, rest); size != 0) {
        header = {};
        return {Status::kDone, size};
      }
    }
    return inner_.receive(header, frame, rest);
  }

  std::optional<std::chrono::nanoseconds> own_frame_in() override { return responder_.due_in(); }

 private:
  // Not inlined: a hardened build clears their arrays, which is not to be done for every frame of others.

  // A frame of which `start` was judged: the rest goes behind it, so that no byte is read twice.
  [[gnu::noinline]] void take(const NetHeader& header, std::span<const std::byte> start, ChainReader rest) {
    std::array<std::byte, Responder::kMaxInput> bytes;
    const std::size_t size = start.size() + rest.remaining();
    const std::size_t used = std::min(size, bytes.size());
    std::ranges::copy(start, bytes.begin());
    rest.read(std::span(bytes).first(used).subspan(start.size()));
    const bool trusted = (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
    responder_.accept(std::span(bytes).first(used), size, trusted);
  }

  // The responder's next frame, and its size; 0 where there is none.
  [[gnu::noinline]] std::size_t give(ChainWriter frame, std::span<std::byte> rest) {
    std::array<std::byte, Responder::kMaxOutput> bytes;
    const auto made = std::span(bytes).first(responder_.send(bytes));
    const std::size_t here = std::min<std::size_t>(made.size(), frame.remaining());
    frame.write(made.first(here));
    std::ranges::copy(made.subspan(here), rest.begin());
    return made.size();
  }

  NetPort& inner_;
  Responder& responder_;
};

class MmdsBackend final : public NetBackend {
 public:
  MmdsBackend(std::unique_ptr<NetBackend> inner, std::shared_ptr<Mmds> mmds,
              const ResponderSettings& settings)
      : inner_(std::move(inner)), responder_(std::move(mmds), settings) {
    ports_.reserve(inner_->pairs());
    for (std::size_t pair = 0; pair < inner_->pairs(); ++pair) {
      ports_.emplace_back(inner_->port(pair), responder_);
    }
  }

  std::size_t pairs() const override { return inner_->pairs(); }
  NetPort& port(std::size_t pair) override { return ports_[pair]; }
  NetOffloads offloads() const override { return inner_->offloads(); }
  Result<void> set_offloads(const NetOffloads& offloads) override { return inner_->set_offloads(offloads); }
  Result<void> use_pairs(std::size_t pairs) override { return inner_->use_pairs(pairs); }

 private:
  std::unique_ptr<NetBackend> inner_;
  Responder responder_;
  std::vector<MmdsPort> ports_;
};

}  // namespace

std::unique_ptr<NetBackend> with_mmds(std::unique_ptr<NetBackend> backend, std::shared_ptr<Mmds> mmds,
                                      const ResponderSettings& settings) {
  return std::make_unique<MmdsBackend>(std::move(backend), std::move(mmds), settings);
}

}  // namespace mayfly
