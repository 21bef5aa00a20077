#include "mayfly/device_options.h"

#include <string>

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
  const auto wrong = [text](std::string_view what) {
    return fail(ErrorCode::kInvalidArgument, "\"" + std::string(text) + "\" " + std::string(what));
  };
  if (drive.path.empty()) {
    return wrong("names no file");
  }
  if (drive.overlay && drive.read_only) {
    return wrong("asks for an overlay, which takes what the guest writes, and for a drive that is read-only");
  }
  if (drive.overlay && drive.overlay->path && drive.overlay->path->empty()) {
    return wrong("names no file for the overlay; \"overlay\" alone keeps it in memory");
  }
  return drive;
}

}  // namespace mayfly
