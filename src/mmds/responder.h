// A host of one address on a guest's link, on which the metadata service listens: ARP, IPv4, TCP, HTTP.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "devices/virtio/net/mac_address.h"
#include "mmds/mmds.h"
#include "mmds/mmds_config.h"
#include "mmds/tcp_connection.h"

namespace mayfly {

// 32 bits that a guest cannot guess, from getrandom(2): where a connection's sequence numbers begin.
std::uint32_t random_sequence();

struct ResponderSettings {
  Ipv4Address address = kDefaultMmdsAddress;
  std::uint16_t mtu = 1500;            // of what it sends
  const Clock* clock = &kSystemClock;  // borrowed: retransmission's time
  std::uint32_t (*initial_sequence)() = random_sequence;
};

// Answers ARP requests for its address and TCP segments to port 80 of it; resets what comes to other ports;
// everything else that is sent to it is dropped. It never sends unasked, and nothing but to the Ethernet and
// IP addresses that a frame came from. Not thread-safe.
//
// All that a guest can make grow is bounded: kMaxConnections connections (a further one takes the place of
// the one that is idle for the longest time, or is refused by silence), kMaxResets resets and one ARP reply
// that wait to be sent. Counts in metrics().mmds.
class Responder {
 public:
  static constexpr MacAddress kMac{{0x06, 0x01, 0x23, 0x45, 0x67, 0x01}};
  static constexpr std::uint16_t kPort = 80;
  static constexpr std::size_t kMaxConnections = 30;
  static constexpr std::size_t kMaxResets = 16;
  // A connection of which nothing was heard for so long may be displaced where it is idle. A client whose SYN
  // finds no room meanwhile tries again after a second.
  static constexpr std::uint64_t kIdle = TcpConnection::kSecond / 2;
  // And whatever it is doing.
  static constexpr std::uint64_t kStale = 10 * TcpConnection::kSecond;
  // As much of a frame as concerns() wants to see: up to the end of an ARP packet.
  static constexpr std::size_t kPeek = 42;
  // As much of a frame as accept() can use: headers with all options, and all that a window has room for.
  static constexpr std::size_t kMaxInput = 14 + 60 + 60 + TcpConnection::kWindow;
  static constexpr std::size_t kMaxOutput = 14 + 40 + 1460;

  Responder(std::shared_ptr<Mmds> mmds, const ResponderSettings& settings);

  // Whether the frame that begins with `start` (kPeek bytes, or all of a shorter one) is for the address.
  bool concerns(std::span<const std::byte> start) const;

  // Takes a frame that concerns(): its first kMaxInput bytes, `size` in all. `trusted` says that its
  // checksums need not be right: the driver leaves them to the device.
  void accept(std::span<const std::byte> frame, std::size_t size, bool trusted);

  // Whether send() may have something, without a look at the clock: since accept() or due_in() said so.
  bool ready() const { return ready_; }
  // The next frame to the guest, into `frame`, and its size; 0 where there is none now.
  std::size_t send(std::span<std::byte, kMaxOutput> frame);
  // How long until send() has a frame: zero: now. Nothing: not before another accept(). Forgets connections
  // whose time is over.
  std::optional<std::chrono::nanoseconds> due_in();

 private:
  struct Peer {
    MacAddress mac;
    Ipv4Address address;
    std::uint16_t port;
    std::uint16_t our_port;
  };
  struct Entry {
    Peer peer;
    TcpConnection connection;
  };
  struct ArpReply {
    MacAddress mac;
    Ipv4Address address;
  };
  struct Reset {
    Peer peer;
    TcpSegment segment;
  };

  void accept_arp(std::span<const std::byte> frame);
  bool accept_ipv4(std::span<const std::byte> frame, std::size_t size, bool trusted);
  void accept_segment(const Peer& peer, const TcpSegment& segment);
  bool make_room(std::uint64_t now);
  void remove(std::size_t index);
  void refuse(const Peer& peer, const TcpSegment& segment);
  void queue_reset(const Peer& peer, const TcpSegment& segment);
  std::size_t write_arp(const ArpReply& reply, std::span<std::byte, kMaxOutput> frame) const;
  std::size_t write_tcp(const Peer& peer, const TcpSegment& segment,
                        std::span<std::byte, kMaxOutput> frame) const;

  const std::shared_ptr<Mmds> mmds_;
  const ResponderSettings settings_;
  std::uint16_t max_segment_;
  bool ready_ = false;
  std::optional<ArpReply> arp_reply_;
  std::vector<Reset> resets_;
  std::vector<Entry> connections_;
  std::size_t turn_ = 0;  // whose connection sends next
};

}  // namespace mayfly
