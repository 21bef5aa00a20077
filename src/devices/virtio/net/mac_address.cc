#include "devices/virtio/net/mac_address.h"

#include <random>

namespace mayfly {
namespace {

std::optional<std::uint8_t> digit(char character) {
  if (character >= '0' && character <= '9') {
    return static_cast<std::uint8_t>(character - '0');
  }
  const char lower = static_cast<char>(character | 0x20);
  if (lower >= 'a' && lower <= 'f') {
    return static_cast<std::uint8_t>(lower - 'a' + 10);
  }
  return std::nullopt;
}

}  // namespace

std::optional<MacAddress> MacAddress::parse(std::string_view text) {
  MacAddress address;
  if (text.size() != 3 * address.octets.size() - 1) {
    return std::nullopt;
  }
  for (std::size_t index = 0; index < address.octets.size(); ++index) {
    const auto high = digit(text[3 * index]);
    const auto low = digit(text[3 * index + 1]);
    const bool last = index + 1 == address.octets.size();
    if (!high || !low || (!last && text[3 * index + 2] != ':')) {
      return std::nullopt;
    }
    address.octets[index] = static_cast<std::uint8_t>(*high << 4 | *low);
  }
  return address;
}

std::optional<MacAddress> MacAddress::parse_numbered(std::string_view text, std::uint64_t number) {
  constexpr std::string_view kNumber = ":{n}";
  constexpr std::string_view kZero = ":00";
  if (!text.ends_with(kNumber)) {
    return parse(text);
  }
  std::string whole(text.substr(0, text.size() - kNumber.size()));
  const std::size_t given = (whole.size() + 1) / kZero.size();
  while (whole.size() < 3 * MacAddress{}.octets.size() - 1) {
    whole += kZero;
  }
  std::optional<MacAddress> address = parse(whole);
  if (!address || given == address->octets.size()) {
    return std::nullopt;
  }
  for (std::size_t index = address->octets.size(); index-- > given; number >>= 8) {
    address->octets[index] = static_cast<std::uint8_t>(number);
  }
  return number == 0 ? address : std::nullopt;
}

MacAddress MacAddress::generate() {
  std::random_device random;
  const std::uint64_t bits = std::uint64_t{random()} << 32 | random();
  MacAddress address;
  for (std::size_t index = 0; index < address.octets.size(); ++index) {
    address.octets[index] = static_cast<std::uint8_t>(bits >> (8 * index));
  }
  constexpr std::uint8_t kGroup = 1;
  constexpr std::uint8_t kLocal = 2;
  address.octets[0] = static_cast<std::uint8_t>((address.octets[0] & ~kGroup) | kLocal);
  return address;
}

std::string MacAddress::to_string() const {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t octet : octets) {
    if (!text.empty()) {
      text += ':';
    }
    text += kDigits[octet >> 4];
    text += kDigits[octet & 0xf];
  }
  return text;
}

}  // namespace mayfly
