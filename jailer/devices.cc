#include "devices.h"

#include <algorithm>
#include <optional>

#include "base/text.h"

namespace mayfly::jail {
namespace {

constexpr unsigned kMisc = 10;
constexpr unsigned kMemory = 1;

// " 232 kvm\n 200 tun\n"
std::optional<unsigned> minor_of(std::string_view misc, std::string_view device) {
  while (!misc.empty()) {
    std::string_view line = misc.substr(0, misc.find('\n'));
    misc.remove_prefix(std::min(misc.size(), line.size() + 1));
    line.remove_prefix(std::min(line.size(), line.find_first_not_of(' ')));
    const std::size_t space = line.find(' ');
    if (space != std::string_view::npos && line.substr(space + 1) == device) {
      return parse_integer<unsigned>(line.substr(0, space));
    }
  }
  return std::nullopt;
}

}  // namespace

std::vector<Device> jail_devices(std::string_view misc) {
  std::vector<Device> devices = {
      {.path = "kvm", .major = kMisc, .minor = 232},
      {.path = "net/tun", .major = kMisc, .minor = 200},
      {.path = "urandom", .major = kMemory, .minor = 9},
  };
  if (const auto minor = minor_of(misc, "userfaultfd")) {
    devices.push_back({.path = "userfaultfd", .major = kMisc, .minor = *minor});
  }
  return devices;
}

}  // namespace mayfly::jail
