#include "devices/virtio/net/net_config.h"

#include <arpa/inet.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/text.h"
#include "devices/virtio/net/passt_backend.h"
#include "devices/virtio/net/tap_backend.h"

namespace mayfly {
namespace {

bool is_port(std::uint32_t port) {
  return port >= 1 && port <= 65535;
}

bool is_address(const std::string& text) {
  in6_addr address{};
  return ::inet_pton(AF_INET, text.c_str(), &address) == 1 ||
         ::inet_pton(AF_INET6, text.c_str(), &address) == 1;
}

// As the kernel has it, and without '%', which asks it for a number.
bool is_interface_name(std::string_view name) {
  const auto is_allowed = [](char character) {
    return character > ' ' && character < '\x7f' && character != '/' && character != ':' && character != '%';
  };
  return !name.empty() && name.size() <= 15 && name != "." && name != ".." &&
         std::ranges::all_of(name, is_allowed);
}

Result<void> check_user_net(const UserNetConfig& user) {
  for (std::size_t index = 0; index < user.forwards.size(); ++index) {
    const PortForward& forward = user.forwards[index];
    if (!is_port(forward.host_port) || !is_port(forward.guest_port)) {
      return fail(ErrorCode::kInvalidArgument, "a port to forward must be 1 to 65535");
    }
    if (!forward.host_address.empty() && !is_address(forward.host_address)) {
      return fail(ErrorCode::kInvalidArgument,
                  "'" + forward.host_address + "' is no IP address of the host to forward from");
    }
    const auto clashes = [&forward](const PortForward& other) {
      return other.protocol == forward.protocol && other.host_port == forward.host_port &&
             (other.host_address == forward.host_address || other.host_address.empty() ||
              forward.host_address.empty());
    };
    const auto end = user.forwards.begin() + static_cast<std::ptrdiff_t>(index);
    if (std::any_of(user.forwards.begin(), end, clashes)) {
      return fail(ErrorCode::kInvalidArgument,
                  "port " + std::to_string(forward.host_port) + " of the host is forwarded twice");
    }
  }
  return {};
}

Result<void> check(const NetDeviceConfig& config) {
  const auto wrong = [](std::string what) { return fail(ErrorCode::kInvalidArgument, std::move(what)); };
  if (!is_resource_id(config.id)) {
    return wrong("its id must have 1 to 64 of A-Z, a-z, 0-9 and '_'");
  }
  if (config.mac && (config.mac->is_multicast() || config.mac->is_zero())) {
    return wrong("the MAC address " + config.mac->to_string() +
                 " (guest_mac) is not the address of a single interface");
  }
  if (config.mtu && (*config.mtu < kMinMtu || *config.mtu > kMaxMtu)) {
    return wrong("mtu " + std::to_string(*config.mtu) + " is not 68 to 65535");
  }
  if (config.queue_pairs < 1 || config.queue_pairs > kMaxQueuePairs) {
    return wrong("queue_pairs " + std::to_string(config.queue_pairs) + " is not 1 to 8");
  }
  for (const auto& [limiter, name] : {std::pair(&config.rx_rate_limiter, "rx_rate_limiter"),
                                      std::pair(&config.tx_rate_limiter, "tx_rate_limiter")}) {
    if (const auto made = RateLimiter::create(*limiter, 0); !made) {
      return tl::make_unexpected(made.error().within(name));
    }
  }
  if (const auto* const tap = std::get_if<TapConfig>(&config.backend)) {
    if (!is_interface_name(tap->name)) {
      return wrong("the tap (host_dev_name) must be a name: 1 to 15 characters, no space, '/', ':' or '%'");
    }
    return {};
  }
  if (config.queue_pairs != 1) {
    return wrong("queue_pairs " + std::to_string(config.queue_pairs) + ": user networking has one");
  }
  if (config.mtu && *config.mtu > kMaxUserMtu) {
    return wrong("mtu " + std::to_string(*config.mtu) + ": user networking has at most 65520");
  }
  return check_user_net(std::get<UserNetConfig>(config.backend));
}

}  // namespace

std::string PortForward::to_string() const {
  return (host_address.empty() ? "" : host_address + "/") + std::to_string(host_port) + ":" +
         std::to_string(guest_port) + (protocol == Protocol::kUdp ? ":udp" : "");
}

Result<PortForward> parse_port_forward(std::string_view text) {
  const auto wrong = [text] {
    return fail(ErrorCode::kInvalidArgument,
                "forward '" + std::string(text) + "' is not " + kPortForwardForm);
  };
  PortForward forward;
  std::string_view rest = text;
  if (const std::size_t slash = rest.find('/'); slash != std::string_view::npos) {
    forward.host_address = rest.substr(0, slash);
    rest.remove_prefix(slash + 1);
    if (!is_address(forward.host_address)) {
      return wrong();
    }
  }
  if (rest.ends_with(":udp")) {
    forward.protocol = PortForward::Protocol::kUdp;
    rest.remove_suffix(4);
  } else if (rest.ends_with(":tcp")) {
    rest.remove_suffix(4);
  }
  const std::size_t colon = rest.find(':');
  const auto host = parse_integer<std::uint32_t>(rest.substr(0, colon));
  const auto guest =
      colon == std::string_view::npos ? host : parse_integer<std::uint32_t>(rest.substr(colon + 1));
  if (!host || !guest || !is_port(*host) || !is_port(*guest)) {
    return wrong();
  }
  forward.host_port = *host;
  forward.guest_port = *guest;
  return forward;
}

Result<void> NetDeviceConfig::validate() const {
  if (const auto done = check(*this); !done) {
    return tl::make_unexpected(done.error().within("interface " + id));
  }
  return {};
}

NetDeviceSettings NetDeviceConfig::settings() const {
  NetDeviceSettings settings{.id = id,
                             .mac = mac ? *mac : MacAddress::generate(),
                             .rx_rate_limiter = rx_rate_limiter,
                             .tx_rate_limiter = tx_rate_limiter};
  if (mtu) {
    settings.mtu = static_cast<std::uint16_t>(*mtu);
  } else if (std::holds_alternative<UserNetConfig>(backend)) {
    settings.mtu = kMaxUserMtu;
  }
  return settings;
}

Result<std::unique_ptr<NetBackend>> NetDeviceConfig::open_backend() const {
  MAYFLY_TRY(validate());
  const auto within = [this](const Error& error) {
    return tl::make_unexpected(error.within("interface " + id));
  };
  if (const auto* const tap = std::get_if<TapConfig>(&backend)) {
    auto opened = TapBackend::open(tap->name, queue_pairs);
    if (!opened) {
      return within(opened.error());
    }
    return std::move(*opened);
  }
  auto started = PasstProcess::start({.user = std::get<UserNetConfig>(backend),
                                      .mtu = static_cast<std::uint16_t>(mtu.value_or(kMaxUserMtu))});
  if (!started) {
    return within(started.error());
  }
  return std::make_unique<PasstBackend>(std::move(started->socket), std::move(started->process));
}

}  // namespace mayfly
