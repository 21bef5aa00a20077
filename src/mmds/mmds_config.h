// What the metadata service is to be: plain data, filled by the API or the configuration file.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mayfly {

struct Ipv4Address {
  std::array<std::uint8_t, 4> octets{};

  // Four decimal numbers with dots between them, without leading zeros; nothing where `text` is anything
  // else.
  static std::optional<Ipv4Address> parse(std::string_view text);
  std::string to_string() const;

  friend bool operator==(const Ipv4Address&, const Ipv4Address&) = default;
};

inline constexpr Ipv4Address kDefaultMmdsAddress{{169, 254, 169, 254}};

enum class MmdsVersion : std::uint8_t {
  kV1,  // any guest process reads by a plain GET
  kV2,  // reading needs a session token, which a redirected request does not get by chance
};

struct MmdsConfig {
  std::vector<std::string> network_interfaces{};  // ids of those through which a guest reaches the service
  MmdsVersion version = MmdsVersion::kV1;
  Ipv4Address ipv4_address = kDefaultMmdsAddress;
  bool imds_compat = false;  // answers are text whatever the guest accepts

  // kInvalidArgument that names the field: no interface, one that is not among `existing`, or an address that
  // is not link-local (RFC 3927, 2.1: 169.254/16 without its first and last 256).
  Result<void> validate(std::span<const std::string> existing) const;

  friend bool operator==(const MmdsConfig&, const MmdsConfig&) = default;
};

}  // namespace mayfly
