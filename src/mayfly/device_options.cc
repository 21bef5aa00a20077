#include "mayfly/device_options.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <variant>

#include "base/text.h"
#include "mayfly/suggestion.h"

namespace mayfly {
namespace {

constexpr std::string_view kOverlayIn = "overlay=";

// Takes `word` as what is to be different about the drive; false where it is no such word.
bool apply(std::string_view word, BlockDeviceConfig& drive) {
  if (word == "ro") {
    drive.read_only = true;
  } else if (word == "overlay") {
    drive.overlay = BlockOverlayConfig{};
  } else if (word.starts_with(kOverlayIn)) {
    drive.overlay = BlockOverlayConfig{.path = std::string(word.substr(kOverlayIn.size()))};
  } else {
    return false;
  }
  return true;
}

}  // namespace

Result<BlockDeviceConfig> parse_drive_option(std::string_view text) {
  BlockDeviceConfig drive;
  // From the end on, so that a path may hold colons.
  std::string_view rest = text;
  for (std::size_t colon = rest.rfind(':'); colon != std::string_view::npos; colon = rest.rfind(':')) {
    if (!apply(rest.substr(colon + 1), drive)) {
      break;
    }
    rest = rest.substr(0, colon);
  }
  drive.path = std::string(rest);
  MAYFLY_TRY(drive.check().map_error(
      [text](const Error& error) { return error.within("\"" + std::string(text) + '"'); }));
  return drive;
}

namespace {

// What `word`, behind an image, is likely a slip of, with the file that stands in it; empty: of none.
std::string meant_by(std::string_view word, DriveWords words) {
  constexpr std::array<std::string_view, 5> kWritten = {"overlay", "ro", "readonly", "read-only", "rw"};
  const std::string_view name = word.substr(0, word.find('='));
  const std::string_view found =
      nearest(name, std::span(kWritten).first(words == DriveWords::kAll ? kWritten.size() : 1));
  if (found.empty() || found == "rw") {
    return "";  // a disk is written to unless somebody says otherwise
  }
  return found == "overlay" ? ":" + std::string(found) + std::string(word.substr(name.size())) : ":ro";
}

}  // namespace

Result<void> check_drive_words(const std::string& path, DriveWords words,
                               const std::function<bool(const std::string&)>& exists) {
  const std::size_t last = path.rfind(':');
  if (last == std::string::npos || exists(path)) {
    return {};
  }
  const std::string word = path.substr(last + 1);
  const std::string meant = meant_by(word, words);
  bool is_word = !meant.empty();
  if (path.find('{') == std::string::npos) {
    for (std::size_t colon = path.find(':'); !is_word && colon != std::string::npos;
         colon = path.find(':', colon + 1)) {
      is_word = exists(path.substr(0, colon));
    }
  }
  if (!is_word) {
    return {};
  }
  return fail(ErrorCode::kInvalidArgument, "there is no \"" + path + "\", and behind an image only " +
                                               (words == DriveWords::kAll ? ":ro, " : "") +
                                               ":overlay and :overlay=FILE mean something, not \":" + word +
                                               "\"" + (meant.empty() ? "" : "; did you mean " + meant + "?"));
}

namespace {

// Takes one item of a network's flag. Errors are what is wrong with it.
Result<void> apply(std::string_view item, NetDeviceConfig& network) {
  const std::size_t equals = item.find('=');
  const std::string_view key = item.substr(0, equals);
  const std::string_view value = equals == std::string_view::npos ? "" : item.substr(equals + 1);
  auto* user = std::get_if<UserNetConfig>(&network.backend);
  if (key == "mac") {
    network.mac = MacAddress::parse(value);
    return network.mac ? Result<void>()
                       : fail(ErrorCode::kInvalidArgument,
                              "\"" + std::string(value) + "\" is no MAC address, such as 06:00:ac:10:00:02");
  }
  if (key == "mtu" || key == "queues") {
    const auto number = parse_integer<std::uint32_t>(value);
    if (!number) {
      return fail(ErrorCode::kInvalidArgument, std::string(key) + " needs a number");
    }
    (key == "mtu" ? network.mtu.emplace() : network.queue_pairs) = *number;
    return {};
  }
  if (key == "forward" && user != nullptr) {
    MAYFLY_TRY_ASSIGN(const PortForward forward, parse_port_forward(value));
    user->forwards.push_back(forward);
    return {};
  }
  if (item == "host-loopback" && user != nullptr) {
    user->host_loopback = true;
    return {};
  }
  return fail(ErrorCode::kInvalidArgument,
              "\"" + std::string(item) + "\" is none of " + "mac=MAC, mtu=N, queues=N" +
                  (user != nullptr ? ", forward=" + std::string(kPortForwardForm) + ", host-loopback" : ""));
}

}  // namespace

Result<NetDeviceConfig> parse_network_option(std::string_view text) {
  constexpr std::string_view kTap = "tap=";
  NetDeviceConfig network;
  network.id = "net";  // for validate(): the caller knows which one it is
  std::size_t comma = std::min(text.find(','), text.size());
  const std::string_view kind = text.substr(0, comma);
  if (kind == "user") {
    network.backend = UserNetConfig{};
  } else if (kind.starts_with(kTap)) {
    network.backend = TapConfig{std::string(kind.substr(kTap.size()))};
  } else {
    return fail(ErrorCode::kInvalidArgument,
                "\"" + std::string(text) + "\" must start with tap=NAME or user");
  }
  while (comma < text.size()) {
    const std::size_t begin = comma + 1;
    comma = std::min(text.find(',', begin), text.size());
    MAYFLY_TRY(apply(text.substr(begin, comma - begin), network));
  }
  MAYFLY_TRY(network.validate());
  return network;
}

}  // namespace mayfly
