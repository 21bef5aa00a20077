// passt's stream under whoever is at its other end: frames, lengths that no frame has, bytes of any kind, cut
// anywhere; and frames of the guest's meanwhile, to a peer that reads them when it likes. Each byte of the
// input is a decision.
//
// Held: frames come as they were sent, whole and in order, and nothing else; a length beyond kMaxFrame closes
// the port, whether its bytes are there or not; the peer reads the guest's frames as they were sent.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "devices/virtio/net/passt_backend.h"
#include "memory/guest_memory.h"
#include "quiet_log.h"
#include "support/fuzz_input.h"

namespace mayfly::testing {
namespace {

constexpr std::size_t kLength = 4;
constexpr std::size_t kMostPending = std::size_t{1} << 20;

// Where frames of the guest's lie, and buffers for those that come.
GuestMemory& guest_memory() {
  static GuestMemory memory = [] {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), 1 << 18)};
    return std::move(*GuestMemory::create(ranges, Backing::kAnonymous));
  }();
  return memory;
}

class Exerciser : private FuzzInput {
 public:
  explicit Exerciser(std::span<const std::uint8_t> input) : FuzzInput(input), rest_(NetPort::kRest) {}

  void run() {
    std::array<int, 2> fds{};
    hold(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) == 0, "there are sockets");
    peer_ = UniqueFd(fds[1]);
    const unsigned shape = byte();
    if ((shape & 1) != 0) {
      // Then frames of the guest's go out in parts.
      const int small = 4096;
      ::setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    }
    PasstBackend backend{UniqueFd(fds[0])};
    port_ = &backend.port(0);
    while (!empty()) {
      step();
    }
    deliver(kMostPending);
    for (int frames = 0; frames < 100'000 && receive(60'000) == NetPort::Status::kDone; ++frames) {
      deliver(kMostPending);
    }
  }

 private:
  void step() {
    switch (byte() % 12) {
      case 0:
        say_frame(word() % 2000);
        break;
      case 1:
        say_frame(std::min(std::size_t{word()} * 2, kMaxFrame));
        break;
      case 2: {  // more than a frame has, by little or by much
        const std::size_t size = kMaxFrame + 1 + word();
        say_length(size);
        say(byte() % 2 == 0 ? size : word() * 2);
        break;
      }
      case 3:
        for (unsigned left = 1 + byte() % 16U; left != 0; --left) {
          pending_.push_back(std::byte{byte()});
        }
        break;
      case 4:
        deliver(1 + byte());
        break;
      case 5:
        deliver(word() * 4);
        break;
      case 6:
        receive(word());
        break;
      case 7:
        for (unsigned left = byte(); left != 0 && receive(100) == NetPort::Status::kDone; --left) {
        }
        break;
      case 8:
        send(kEthernetHeader + word() % (kMaxFrame - kEthernetHeader + 1));
        break;
      case 9:
        listen(1 + word());
        break;
      case 10:
        if (peer_ && port_->flush() == NetPort::Status::kDone) {
          hold(!port_->unsent(), "what was flushed is out");
        }
        break;
      default:
        if (byte() == 0xff) {
          peer_.reset();
        }
        break;
    }
  }

  // --- the peer ---

  void say_length(std::size_t size) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      pending_.push_back(static_cast<std::byte>(size >> shift));
    }
  }
  void say(std::size_t bytes) {
    for (; bytes != 0 && pending_.size() < kMostPending; --bytes) {
      pending_.push_back(static_cast<std::byte>(pattern_++ * 7));
    }
  }
  void say_frame(std::size_t size) {
    say_length(size);
    say(size);
  }

  // Into the socket, as much as it takes: from then on the device can read it.
  void deliver(std::size_t most) {
    if (!peer_ || pending_.empty()) {
      return;
    }
    const ssize_t sent =
        ::send(peer_.get(), pending_.data(), std::min(most, pending_.size()), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
      const auto end = pending_.begin() + sent;
      there_.insert(there_.end(), pending_.begin(), end);
      pending_.erase(pending_.begin(), end);
    }
  }

  void listen(std::size_t most) {
    if (!peer_) {
      return;
    }
    std::vector<std::byte> bytes(most);
    const ssize_t size = ::recv(peer_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (size <= 0) {
      return;
    }
    const auto got = std::span(bytes).first(static_cast<std::size_t>(size));
    hold(got.size() <= expected_.size() && std::ranges::equal(got, std::span(expected_).first(got.size())),
         "the peer reads the guest's frames");
    expected_.erase(expected_.begin(), expected_.begin() + size);
  }

  // --- the device ---

  NetPort::Status receive(std::size_t room) {
    // In two pieces: a frame may begin in one and end in the other.
    const std::size_t first = room / 3;
    const std::vector<GuestSlice> slices = {*guest_memory().slice(GuestAddress(0), first + 1),
                                            *guest_memory().slice(GuestAddress(0x20000), room - first + 1)};
    NetHeader header;
    const NetPort::Received received = port_->receive(header, ChainWriter(slices), rest_);
    std::optional<std::size_t> length;
    if (there_.size() >= kLength) {
      length = 0;
      for (std::size_t index = 0; index < kLength; ++index) {
        length = *length << 8 | std::to_integer<std::size_t>(there_[index]);
      }
    }
    const bool impossible = length && *length > kMaxFrame;
    const bool whole = length && !impossible && there_.size() >= kLength + *length;
    switch (received.status) {
      case NetPort::Status::kDone:
        hold(!closed_, "a closed port stays closed");
        hold(whole && received.bytes == *length, "what comes is a frame that was sent");
        check_bytes(std::span(there_).subspan(kLength, *length), slices);
        there_.erase(there_.begin(), there_.begin() + static_cast<std::ptrdiff_t>(kLength + *length));
        break;
      case NetPort::Status::kWouldBlock:
        hold(!closed_ && !whole && !impossible, "a frame that is there comes");
        break;
      case NetPort::Status::kClosed:
        hold(closed_ || impossible || !peer_, "a port closes for a reason");
        closed_ = true;
        break;
      case NetPort::Status::kFailed:
        broken("a stream fails at no single frame");
    }
    return received.status;
  }

  void check_bytes(std::span<const std::byte> frame, std::span<const GuestSlice> slices) {
    ChainReader reader(slices);
    std::vector<std::byte> in_buffers(std::min<std::size_t>(frame.size(), reader.remaining()));
    reader.read(in_buffers);
    const auto in_rest = frame.subspan(in_buffers.size());
    hold(std::ranges::equal(in_buffers, frame.first(in_buffers.size())) &&
             std::ranges::equal(in_rest, std::span(rest_).first(in_rest.size())),
         "a frame has the bytes that it was sent with");
  }

  void send(std::size_t size) {
    std::vector<std::byte> frame(size);
    for (std::byte& part : frame) {
      part = static_cast<std::byte>(pattern_++ * 5);
    }
    (void)guest_memory().write(GuestAddress(0x10), frame);
    const std::vector<GuestSlice> slices = {
        *guest_memory().slice(GuestAddress(0x10), size / 2),
        *guest_memory().slice(GuestAddress(0x10 + size / 2), size - size / 2)};
    const NetPort::Status status = port_->send({}, ChainReader(slices));
    if (status == NetPort::Status::kDone) {
      for (int shift = 24; shift >= 0; shift -= 8) {
        expected_.push_back(static_cast<std::byte>(size >> shift));
      }
      expected_.insert(expected_.end(), frame.begin(), frame.end());
    } else if (status == NetPort::Status::kClosed) {
      hold(closed_ || !peer_, "a port closes for a reason");
      closed_ = true;
    } else {
      hold(status == NetPort::Status::kWouldBlock && !closed_, "a frame waits for room, or is sent");
    }
  }

  std::vector<std::byte> rest_;  // not a byte more than is promised: a sanitizer looks behind it
  UniqueFd peer_;
  NetPort* port_ = nullptr;
  std::vector<std::byte> pending_;   // what the peer is still to send
  std::vector<std::byte> there_;     // what it sent and the device gave no frame of yet
  std::vector<std::byte> expected_;  // what the device sent and the peer has not read
  unsigned pattern_ = 0;
  bool closed_ = false;
};

}  // namespace
}  // namespace mayfly::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::testing::quiet_log();
  mayfly::testing::Exerciser({data, size}).run();
  return 0;
}
