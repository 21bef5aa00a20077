#include "snapshot/micro_vm_state.h"

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "base/checked.h"
#include "snapshot/fields.h"

namespace mayfly {
namespace {

using snapshot_detail::Bytes;
using snapshot_detail::code;
using snapshot_detail::Coded;
using snapshot_detail::Decoder;
using snapshot_detail::Encoder;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMaxSectors = std::uint64_t{1} << 54;  // no file has more bytes than 2^63

enum class Times : std::uint8_t {
  kOnce,
  kAtMostOnce,
  kAnyNumber,  // by index, from 0 on
};

// What a section holds: how often it comes, whether a reader that does not know it may pass over it, and
// which part of the state it is.
template <typename Visit>
void for_each_section(Visit visit) {
  visit(
      "producer", Times::kAtMostOnce, true, [](auto& state) -> auto& { return state.producer; });
  visit(
      "machine", Times::kOnce, false, [](auto& state) -> auto& { return state.machine; });
  visit(
      "memory", Times::kOnce, false, [](auto& state) -> auto& { return state.memory; });
  visit(
      "boot", Times::kAtMostOnce, true, [](auto& state) -> auto& { return state.boot; });
  visit(
      "template", Times::kAtMostOnce, true, [](auto& state) -> auto& { return state.cpu_template; });
  visit(
      "vcpu", Times::kAnyNumber, false, [](auto& state) -> auto& { return state.vcpus; });
  visit(
      "platform", Times::kOnce, false, [](auto& state) -> auto& { return state.platform; });
  visit(
      "clock", Times::kOnce, false, [](auto& state) -> auto& { return state.clock; });
  visit(
      "serial", Times::kOnce, false, [](auto& state) -> auto& { return state.serial; });
  visit(
      "power", Times::kOnce, false, [](auto& state) -> auto& { return state.power; });
  visit(
      "drive", Times::kAnyNumber, false, [](auto& state) -> auto& { return state.drives; });
  visit(
      "network", Times::kAnyNumber, false, [](auto& state) -> auto& { return state.networks; });
  visit(
      "metadata", Times::kAtMostOnce, false, [](auto& state) -> auto& { return state.mmds; });
  visit(
      "mark", Times::kAtMostOnce, true, [](auto& state) -> auto& { return state.mark; });
  visit(
      "base", Times::kAtMostOnce, true, [](auto& state) -> auto& { return state.base; });
}

// Of every section, so far.
constexpr std::uint16_t kSectionVersion = 1;

tl::unexpected<Error> wrong(const std::string& section, const std::string& what) {
  return fail(ErrorCode::kInvalidImage, "section " + section + ": " + what);
}

// A section that decodes whole into `value`.
template <typename T>
Result<void> decode_section(const SnapshotSection& section, T& value) {
  if (section.version != kSectionVersion) {
    return fail(ErrorCode::kUnsupported, "section " + section.title() + " has version " +
                                             std::to_string(section.version) + ", this program reads " +
                                             std::to_string(kSectionVersion) + ": it is " +
                                             (section.version > kSectionVersion ? "newer" : "too old"));
  }
  Decoder decoder(section.payload);
  code(decoder, value);
  if (decoder.error()) {
    return wrong(section.title(), *decoder.error());
  }
  if (decoder.remaining() != 0) {
    return wrong(section.title(), std::to_string(decoder.remaining()) + " bytes too many");
  }
  return {};
}

template <typename Part>
struct Held {
  using Type = Part;
};
template <typename Part>
struct Held<std::optional<Part>> {
  using Type = Part;
};

// The sections of a file, of which each is taken once.
class Sections {
 public:
  explicit Sections(std::span<const SnapshotSection> sections)
      : sections_(sections), taken_(sections.size()) {}

  // The section of that name and number, or nothing.
  const SnapshotSection* take(std::string_view name, std::uint32_t index) {
    for (std::size_t place = 0; place < sections_.size(); ++place) {
      if (!taken_[place] && sections_[place].name == name && sections_[place].index == index) {
        taken_[place] = true;
        return &sections_[place];
      }
    }
    return nullptr;
  }

  // What is left: twice there, numbered with a gap, or not known.
  Result<void> check_rest(const std::set<std::string_view>& known) const {
    for (std::size_t place = 0; place < sections_.size(); ++place) {
      const SnapshotSection& section = sections_[place];
      if (taken_[place]) {
        continue;
      }
      if (known.contains(section.name)) {
        return wrong(section.title(), "it is there twice, or one before it is missing");
      }
      if (!section.optional) {
        return fail(ErrorCode::kUnsupported,
                    "section " + section.title() + " is unknown, and the microVM cannot do without it");
      }
    }
    return {};
  }

 private:
  std::span<const SnapshotSection> sections_;
  std::vector<char> taken_;  // a bool each
};

template <typename Part>
Result<void> decode_list(Sections& sections, const char* name, Part& part) {
  while (const SnapshotSection* section = sections.take(name, static_cast<std::uint32_t>(part.size()))) {
    MAYFLY_TRY(decode_section(*section, part.emplace_back()));
  }
  return {};
}

template <typename Part>
Result<void> decode_one(Sections& sections, const char* name, bool required, Part& part) {
  const SnapshotSection* section = sections.take(name, 0);
  if (section == nullptr) {
    return required ? tl::expected<void, Error>(wrong(name, "it is missing")) : Result<void>();
  }
  typename Held<Part>::Type value{};
  MAYFLY_TRY(decode_section(*section, value));
  part = std::move(value);
  return {};
}

Result<void> check_header(const SnapshotHeader& header, const MicroVmState& state) {
  const auto differs = [](const char* what) {
    return fail(ErrorCode::kInvalidImage,
                std::string("its header says another ") + what + " than its sections");
  };
  if (header.vcpu_count != state.vcpus.size()) {
    return differs("number of vCPUs");
  }
  if (header.memory_size != state.memory_size()) {
    return differs("memory size");
  }
  if (header.vendor != snapshot_detail::vendor_code(state.vcpus.front())) {
    return differs("processor");
  }
  return {};
}

Result<void> check_memory(std::span<const SavedRange> memory) {
  if (memory.empty() || memory.size() > MicroVmState::kMaxRanges) {
    return wrong("memory 0", std::to_string(memory.size()) + " ranges");
  }
  std::uint64_t end = 0;
  for (const SavedRange& range : memory) {
    const auto next = checked_add(range.address, range.size);
    if (range.size == 0 || range.address % kPage != 0 || range.size % kPage != 0 || range.address < end ||
        !next) {
      return wrong("memory 0", "a range is empty, not of whole pages, out of order or wraps");
    }
    end = *next;
  }
  return {};
}

Result<void> check_vcpus(const MicroVmState& state) {
  const std::size_t count = state.vcpus.size();
  if (count == 0 || count > MicroVmState::kMaxVcpus || state.machine.vcpu_count != count) {
    return wrong("machine 0", std::to_string(state.machine.vcpu_count) + " vCPUs, of which there are " +
                                  std::to_string(count));
  }
  for (std::size_t index = 0; index < count; ++index) {
    const std::string title = "vcpu " + std::to_string(index);
    if (state.vcpus[index].id != index) {
      return wrong(title, "it has the id " + std::to_string(state.vcpus[index].id));
    }
    if (const auto what = snapshot_detail::what_is_wrong(state.vcpus[index])) {
      return wrong(title, *what);
    }
  }
  return {};
}

class DeviceChecks {
 public:
  // `valid`: of the configuration.
  Result<void> check(const std::string& title, const std::string& id, std::uint32_t slot,
                     const Result<void>& valid) {
    if (!valid) {
      return wrong(title, valid.error().message());
    }
    if (slot >= MicroVmState::kMaxDevices || !slots_.insert(slot).second) {
      return wrong(title, "slot " + std::to_string(slot) + " is taken or is none");
    }
    if (!ids_.insert(id).second) {
      return wrong(title, "its id is another device's, too");
    }
    return {};
  }

 private:
  std::set<std::string> ids_;
  std::set<std::uint32_t> slots_;
};

Result<void> check_devices(const MicroVmState& state) {
  DeviceChecks checks;
  std::vector<std::string> interfaces;
  for (std::size_t index = 0; index < state.drives.size(); ++index) {
    const SavedDrive& drive = state.drives[index];
    MAYFLY_TRY(checks.check("drive " + std::to_string(index), "drive " + drive.config.id, drive.slot,
                            drive.config.validate()));
    if (drive.sectors > kMaxSectors) {
      return wrong("drive " + std::to_string(index), std::to_string(drive.sectors) + " sectors");
    }
  }
  for (std::size_t index = 0; index < state.networks.size(); ++index) {
    const SavedNetwork& network = state.networks[index];
    MAYFLY_TRY(checks.check("network " + std::to_string(index), "network " + network.config.id, network.slot,
                            network.config.validate()));
    interfaces.push_back(network.config.id);
  }
  if (state.mmds) {
    if (const auto valid = state.mmds->validate(interfaces); !valid) {
      return wrong("metadata 0", valid.error().message());
    }
  }
  return {};
}

}  // namespace

std::uint64_t MicroVmState::memory_size() const {
  std::uint64_t size = 0;
  for (const SavedRange& range : memory) {
    size += range.size;
  }
  return size;
}

Result<void> MicroVmState::check() const {
  MAYFLY_TRY(check_memory(memory));
  MAYFLY_TRY(check_vcpus(*this));
  if (cpu_template) {
    if (const auto valid = cpu_template->validate(); !valid) {
      return wrong("template 0", valid.error().message());
    }
  }
  return check_devices(*this);
}

Result<std::vector<std::byte>> encode(const MicroVmState& state) {
  if (const auto checked = state.check(); !checked) {
    return fail(ErrorCode::kInternal, "a microVM's state cannot be saved: " + checked.error().message());
  }
  std::vector<std::pair<SnapshotSection, Bytes>> made;
  const auto add = [&made](const char* name, std::size_t index, bool optional, const auto& value) {
    Bytes bytes;
    Encoder encoder(bytes);
    code(encoder, value);
    made.emplace_back(SnapshotSection{.name = name,
                                      .index = static_cast<std::uint32_t>(index),
                                      .version = kSectionVersion,
                                      .optional = optional},
                      std::move(bytes));
  };
  for_each_section([&](const char* name, Times times, bool optional, auto part_of) {
    const auto& part = part_of(state);
    using Part = std::remove_cvref_t<decltype(part)>;
    if constexpr (snapshot_detail::IsOptional<Part>::value) {
      if (part) {
        add(name, 0, optional, *part);
      }
    } else if constexpr (snapshot_detail::IsVector<Part>::value) {
      if (times == Times::kAnyNumber) {
        for (std::size_t index = 0; index < part.size(); ++index) {
          add(name, index, optional, part[index]);
        }
      } else {
        add(name, 0, optional, part);
      }
    } else {
      add(name, 0, optional, part);
    }
  });

  std::vector<SnapshotSection> sections;
  for (auto& [section, bytes] : made) {
    section.payload = bytes;
    sections.push_back(section);
  }
  return write_container({.version = kSnapshotVersion,
                          .architecture = snapshot_detail::kArchitecture,
                          .vendor = snapshot_detail::vendor_code(state.vcpus.front()),
                          .memory_size = state.memory_size(),
                          .created_ns = state.created_ns,
                          .vcpu_count = static_cast<std::uint32_t>(state.vcpus.size())},
                         sections);
}

Result<MicroVmState> decode(std::span<const std::byte> bytes) {
  MAYFLY_TRY_ASSIGN(const SnapshotContainer container, read_container(bytes));
  if (container.header.architecture != snapshot_detail::kArchitecture) {
    return fail(ErrorCode::kUnsupported, "it is of another processor architecture (" +
                                             std::to_string(container.header.architecture) + ") than " +
                                             snapshot_detail::kArchitectureName);
  }
  MicroVmState state;
  state.created_ns = container.header.created_ns;
  Sections sections(container.sections);
  std::set<std::string_view> known;
  Result<void> decoded;
  for_each_section([&](const char* name, Times times, bool /*optional*/, auto part_of) {
    known.insert(name);
    auto& part = part_of(state);
    using Part = std::remove_cvref_t<decltype(part)>;
    if (!decoded) {
      return;
    }
    if constexpr (snapshot_detail::IsVector<Part>::value) {
      if (times == Times::kAnyNumber) {
        decoded = decode_list(sections, name, part);
        return;
      }
    }
    decoded = decode_one(sections, name, times == Times::kOnce, part);
  });
  MAYFLY_TRY(decoded);
  MAYFLY_TRY(sections.check_rest(known));
  MAYFLY_TRY(state.check());
  MAYFLY_TRY(check_header(container.header, state));
  return state;
}

}  // namespace mayfly
