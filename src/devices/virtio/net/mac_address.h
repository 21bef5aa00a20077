// Ethernet addresses: "06:00:ac:10:00:02" and back.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mayfly {

struct MacAddress {
  std::array<std::uint8_t, 6> octets{};

  // Six pairs of hexadecimal digits with colons between them, in either case; nothing where `text` is
  // anything else.
  static std::optional<MacAddress> parse(std::string_view text);
  // The same, where `text` may end in "{n}" in place of its last one to five octets, which are then those of
  // `number`, the lowest last: "06:00:ac:{n}" with 258 is 06:00:ac:00:01:02. Nothing for a number that needs
  // more of them.
  static std::optional<MacAddress> parse_numbered(std::string_view text, std::uint64_t number);
  // An address of one's own choosing: locally administered (IEEE 802, 9.2), the rest random.
  static MacAddress generate();

  std::string to_string() const;  // in lower case
  bool is_multicast() const { return (octets[0] & 1) != 0; }
  bool is_zero() const { return octets == std::array<std::uint8_t, 6>{}; }

  friend bool operator==(const MacAddress&, const MacAddress&) = default;
};

}  // namespace mayfly
