// The frame of a snapshot's state file: a header and named sections, each with its checksum. Knows nothing of
// what is in the sections. docs/snapshot-format.md has every byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mayfly {

// Of the format. Files of another major version, and of a later minor one, are refused; those of the same
// minor version differ in nothing that a reader has to know.
struct SnapshotVersion {
  std::uint16_t major = 0;
  std::uint16_t minor = 0;
  std::uint16_t patch = 0;

  // "1.0.0".
  std::string to_string() const;

  friend bool operator==(const SnapshotVersion&, const SnapshotVersion&) = default;
};

inline constexpr SnapshotVersion kSnapshotVersion{.major = 1, .minor = 0, .patch = 0};

// Larger files are none: 32 vCPUs and 18 devices take less than 1 MiB.
inline constexpr std::size_t kMaxSnapshotState = std::size_t{16} << 20;
inline constexpr std::size_t kMaxSnapshotSections = 1024;

struct SnapshotHeader {
  SnapshotVersion version = kSnapshotVersion;
  std::uint8_t architecture = 0;
  std::uint8_t vendor = 0;
  std::uint64_t memory_size = 0;  // bytes of guest memory
  std::uint64_t created_ns = 0;   // since 1970, UTC; 0: not known
  std::uint32_t vcpu_count = 0;

  friend bool operator==(const SnapshotHeader&, const SnapshotHeader&) = default;
};

struct SnapshotSection {
  static constexpr std::size_t kMaxName = 8;

  std::string name;         // lower-case letters, at most kMaxName
  std::uint32_t index = 0;  // among those of one name
  std::uint16_t version = 0;
  bool optional = false;  // a reader that does not know it passes over it
  std::span<const std::byte> payload{};

  // "vcpu 1", for messages.
  std::string title() const;
};

struct SnapshotContainer {
  SnapshotHeader header;
  std::vector<SnapshotSection> sections;  // their payloads lie in the bytes that were read
};

std::vector<std::byte> write_container(const SnapshotHeader& header,
                                       std::span<const SnapshotSection> sections);

// Borrows `bytes`. Every checksum is right in what this answers. Errors: kInvalidImage for what is no
// snapshot, is damaged or is cut off, naming where; kUnsupported for a version that is not read, naming both.
Result<SnapshotContainer> read_container(std::span<const std::byte> bytes);

}  // namespace mayfly
