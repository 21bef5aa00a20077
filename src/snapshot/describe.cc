#include "snapshot/describe.h"

#include <array>
#include <cstdint>
#include <string_view>
#include <variant>
#include <vector>

#include "base/text.h"
#include "snapshot/arch.h"
#include "snapshot/container.h"
#include "snapshot/micro_vm_state.h"

namespace mayfly {
namespace {

constexpr std::uint64_t kKib = 1024;
constexpr std::uint64_t kMib = kKib * kKib;
constexpr std::uint64_t kSector = 512;

// A text from the file: on one line, and nothing to a terminal.
std::string printable(std::string_view text) {
  std::vector<char> storage(4 * text.size());
  TextBuffer escaped(storage);
  escaped.append_escaped(text);
  return std::string(escaped.view());
}

std::string size_text(std::uint64_t bytes) {
  if (bytes % kMib == 0) {
    return std::to_string(bytes / kMib) + " MiB";
  }
  return bytes % kKib == 0 ? std::to_string(bytes / kKib) + " KiB" : std::to_string(bytes) + " bytes";
}

std::string time_text(std::uint64_t realtime_ns) {
  std::array<char, 40> storage{};
  TextBuffer text(storage);
  text.append_utc_time(realtime_ns);
  return std::string(text.view().substr(0, text.view().find('.'))) + "Z";
}

std::string hex_text(const SnapshotMark& mark) {
  std::string text;
  for (const unsigned byte : mark) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 0xf]);
  }
  return text;
}

std::string counted(std::size_t count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

class Lines {
 public:
  explicit Lines(std::string text) : text_(std::move(text)) {}

  void add(std::string_view what, const std::string& value) {
    constexpr std::size_t kColumn = 12;
    text_.append(what).append(kColumn - std::min(what.size(), kColumn - 1), ' ').append(value).append("\n");
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

const char* pages_text(SavedPages pages) {
  switch (pages) {
    case SavedPages::kTransparent:
      return ", transparent huge pages";
    case SavedPages::k2M:
      return ", 2 MiB pages";
    case SavedPages::kNone:
      break;
  }
  return "";
}

std::string drive_text(const SavedDrive& drive) {
  const BlockDeviceConfig& config = drive.config;
  std::string text = printable(config.id) + ": " + printable(config.path) + ", " +
                     size_text(drive.sectors * kSector) + (config.read_only ? ", read-only" : "") +
                     (config.is_root ? ", root" : "");
  if (config.overlay) {
    text += config.overlay->path ? ", overlay " + printable(*config.overlay->path) : ", overlay in memory";
  }
  return text;
}

std::string network_text(const SavedNetwork& network) {
  const auto* tap = std::get_if<TapConfig>(&network.config.backend);
  return printable(network.config.id) + ": " + (tap != nullptr ? "tap " + printable(tap->name) : "passt") +
         ", " + network.state.mac.to_string();
}

std::string metadata_text(const MmdsConfig& config) {
  std::string text = std::string("version ") + (config.version == MmdsVersion::kV2 ? "2" : "1") + " at " +
                     config.ipv4_address.to_string() + ", through";
  for (const std::string& interface : config.network_interfaces) {
    text += " " + printable(interface);
  }
  return text;
}

}  // namespace

std::string snapshot_version_text() {
  return "v" + kSnapshotVersion.to_string();
}

Result<std::string> describe_snapshot(std::span<const std::byte> bytes) {
  MAYFLY_TRY_ASSIGN(const MicroVmState state, decode(bytes));
  MAYFLY_TRY_ASSIGN(const SnapshotContainer container, read_container(bytes));
  Lines lines("v" + container.header.version.to_string() + "\n");
  if (state.created_ns != 0) {
    lines.add("created", time_text(state.created_ns));
  }
  if (!state.producer.empty()) {
    lines.add("program", printable(state.producer));
  }
  const std::string brand = printable(snapshot_detail::brand_of(state.vcpus.front()));
  lines.add("processor", std::string(snapshot_detail::kArchitectureName) + ", " +
                             snapshot_detail::vendor_name(container.header.vendor) +
                             (brand.empty() ? "" : ", " + brand));
  lines.add("vCPUs", std::to_string(state.vcpus.size()) + (state.machine.smt ? ", two a core" : ""));
  lines.add("memory", size_text(state.memory_size()) + ", " + counted(state.memory.size(), "range") +
                          pages_text(state.machine.huge_pages));
  if (state.mark) {
    lines.add("snapshot",
              (state.base ? "Diff onto " + hex_text(*state.base) + ", its own mark is " : "Full, ") +
                  hex_text(*state.mark));
  }
  if (state.boot) {
    lines.add("kernel", printable(state.boot->kernel_image_path));
  }
  for (const SavedDrive& drive : state.drives) {
    lines.add("drive", drive_text(drive));
  }
  for (const SavedNetwork& network : state.networks) {
    lines.add("network", network_text(network));
  }
  if (state.mmds) {
    lines.add("metadata", metadata_text(*state.mmds));
  }
  lines.add("file",
            std::to_string(bytes.size()) + " bytes, " + counted(container.sections.size(), "section"));
  for (const SnapshotSection& section : container.sections) {
    lines.add("", section.title() + ": version " + std::to_string(section.version) + ", " +
                      std::to_string(section.payload.size()) + " bytes" +
                      (section.optional ? ", optional" : ""));
  }
  return lines.take();
}

}  // namespace mayfly
