#include "mmds/mmds_config.h"

#include <algorithm>
#include <charconv>

namespace mayfly {

std::optional<Ipv4Address> Ipv4Address::parse(std::string_view text) {
  Ipv4Address address;
  for (std::size_t index = 0; index < address.octets.size(); ++index) {
    const bool last = index + 1 == address.octets.size();
    const std::size_t end = last ? text.size() : text.find('.');
    if (end == std::string_view::npos) {
      return std::nullopt;
    }
    const std::string_view number = text.substr(0, end);
    const auto [stop, error] =
        std::from_chars(number.data(), number.data() + number.size(), address.octets[index]);
    const bool leading_zero = number.size() > 1 && number.front() == '0';
    if (error != std::errc() || stop != number.data() + number.size() || leading_zero) {
      return std::nullopt;
    }
    text.remove_prefix(last ? end : end + 1);
  }
  return address;
}

std::string Ipv4Address::to_string() const {
  std::string text;
  for (const std::uint8_t octet : octets) {
    text += (text.empty() ? "" : ".") + std::to_string(octet);
  }
  return text;
}

Result<void> MmdsConfig::validate(std::span<const std::string> existing) const {
  const auto refuse = [](const std::string& field, const std::string& why) {
    return fail(ErrorCode::kInvalidArgument, "metadata service: field \"" + field + "\": " + why);
  };
  if (network_interfaces.empty()) {
    return refuse("network_interfaces", "must name one interface at least");
  }
  for (const std::string& id : network_interfaces) {
    if (std::ranges::find(existing, id) == existing.end()) {
      std::string others;
      for (const std::string& other : existing) {
        others.append(others.empty() ? "; there are: " : ", ").append(other);
      }
      return refuse("network_interfaces", "there is no interface \"" + id + "\"" +
                                              (others.empty() ? ", nor any other yet" : others));
    }
  }
  const auto& octets = ipv4_address.octets;
  if (octets[0] != 169 || octets[1] != 254 || octets[2] == 0 || octets[2] == 255) {
    return refuse("ipv4_address", ipv4_address.to_string() +
                                      " is not link-local: it must be in 169.254.1.0 to 169.254.254.255");
  }
  return {};
}

}  // namespace mayfly
