// What a network interface is to be: plain data, filled by the API, the configuration file or the command
// line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"
#include "devices/virtio/net/mac_address.h"
#include "devices/virtio/net/net_backend.h"
#include "devices/virtio/net/net_device.h"
#include "rate_limiter/rate_limiter.h"

namespace mayfly {

inline constexpr std::size_t kMaxQueuePairs = 8;
inline constexpr std::uint32_t kMinMtu = 68;  // 5.1.4.1
inline constexpr std::uint32_t kMaxMtu = 65535;
// What passt can carry: larger is not better. The default with it, for it cannot segment.
inline constexpr std::uint16_t kMaxUserMtu = 65520;

// A port of the host at which the guest is reached.
struct PortForward {
  enum class Protocol : std::uint8_t { kTcp, kUdp };

  Protocol protocol = Protocol::kTcp;
  std::string host_address{};  // IPv4 or IPv6; empty: every address of the host
  std::uint32_t host_port = 0;
  std::uint32_t guest_port = 0;

  // As parse_port_forward() reads it.
  std::string to_string() const;

  friend bool operator==(const PortForward&, const PortForward&) = default;
};

// How a forward is written, wherever a person reads or writes one: host's port first, by default the same one
// of the guest, and TCP.
inline constexpr const char* kPortForwardForm = "[ADDRESS/]PORT[:GUEST_PORT][:tcp|:udp]";

// kInvalidArgument that quotes `text`, where it is not of that form.
Result<PortForward> parse_port_forward(std::string_view text);

// A tap of the host.
struct TapConfig {
  std::string name;  // host_dev_name

  friend bool operator==(const TapConfig&, const TapConfig&) = default;
};

// passt: for users without rights.
struct UserNetConfig {
  std::vector<PortForward> forwards{};
  // Whether the guest reaches the services on the host's loopback interface, as the gateway's.
  bool host_loopback = false;

  friend bool operator==(const UserNetConfig&, const UserNetConfig&) = default;
};

struct NetDeviceConfig {
  std::string id;
  std::variant<TapConfig, UserNetConfig> backend;
  std::optional<MacAddress> mac{};  // absent: generated
  std::optional<std::uint32_t> mtu{};
  std::uint32_t queue_pairs = 1;
  RateLimiterConfig rx_rate_limiter{};  // towards the guest
  RateLimiterConfig tx_rate_limiter{};

  // kInvalidArgument naming the interface and the field.
  Result<void> validate() const;

  // For NetDevice::create(); with a MAC address made up where none is given, another each time.
  NetDeviceSettings settings() const;

  // Opens what the configuration names. Errors name the interface: those of validate(), of TapBackend::open()
  // and of PasstProcess::start().
  Result<std::unique_ptr<NetBackend>> open_backend() const;
};

}  // namespace mayfly
