#include "snapshot/container.h"

#include <algorithm>
#include <array>

#include "base/crc64.h"
#include "snapshot/codec.h"

namespace mayfly {
namespace {

using snapshot_detail::Bytes;
using snapshot_detail::Decoder;
using snapshot_detail::Encoder;

// As PNG's: not text, and spoilt by whoever takes it for text.
constexpr std::array<std::uint8_t, 8> kMagic = {0x89, 'M', 'F', 'L', 'Y', '\r', '\n', 0x1a};

constexpr std::size_t kChecksum = 8;
constexpr std::uint16_t kHeaderSize = 64;
// What a later version keeps of the header: magic, version, the header's size; its checksum at its end.
constexpr std::size_t kFixedStart = 16;
constexpr std::size_t kSectionHeader = 32;
constexpr std::uint16_t kOptionalFlag = 1;

tl::unexpected<Error> damaged(std::string what) {
  return fail(ErrorCode::kInvalidImage, std::move(what));
}

// Whether the last bytes of `bytes` are the checksum of all before them.
bool ends_in_its_checksum(std::span<const std::byte> bytes) {
  Decoder decoder(bytes.last(kChecksum));
  std::uint64_t checksum = 0;
  decoder.integer(checksum);
  return checksum == crc64(bytes.first(bytes.size() - kChecksum));
}

void append_checksum(Bytes& bytes, std::uint64_t checksum) {
  Encoder(bytes).integer(checksum);
}

Result<void> check_version(const SnapshotVersion& version) {
  const std::string spoken =
      "the file has format " + version.to_string() + ", this program reads " + kSnapshotVersion.to_string();
  if (version.major > kSnapshotVersion.major ||
      (version.major == kSnapshotVersion.major && version.minor > kSnapshotVersion.minor)) {
    return fail(ErrorCode::kUnsupported, spoken + ": it is newer");
  }
  if (version.major < kSnapshotVersion.major) {
    return fail(ErrorCode::kUnsupported, spoken + ": it is too old");
  }
  return {};
}

struct ReadHeader {
  SnapshotHeader header;
  std::uint32_t section_count = 0;
};

Result<ReadHeader> read_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kMagic.size() ||
      !std::equal(kMagic.begin(), kMagic.end(), bytes.begin(),
                  [](std::uint8_t one, std::byte other) { return std::byte{one} == other; })) {
    return damaged("it is no snapshot of a microVM's state");
  }
  if (bytes.size() < kFixedStart) {
    return damaged("it is cut off in its header");
  }
  ReadHeader read;
  std::uint16_t header_size = 0;
  Decoder start(bytes.subspan(kMagic.size()));
  start.integer(read.header.version.major);
  start.integer(read.header.version.minor);
  start.integer(read.header.version.patch);
  start.integer(header_size);
  if (header_size < kFixedStart + kChecksum) {
    return damaged("its header is damaged");
  }
  if (header_size > bytes.size()) {
    return damaged("it is cut off in its header");
  }
  if (!ends_in_its_checksum(bytes.first(header_size))) {
    return damaged("its header is damaged: the checksum is wrong");
  }
  MAYFLY_TRY(check_version(read.header.version));
  if (header_size != kHeaderSize) {
    return damaged("its header has " + std::to_string(header_size) + " bytes instead of " +
                   std::to_string(kHeaderSize));
  }
  std::uint16_t reserved = 0;
  std::uint32_t reserved_too = 0;
  std::uint64_t file_size = 0;
  Decoder rest(bytes.subspan(kFixedStart, kHeaderSize - kFixedStart));
  rest.integer(read.header.architecture);
  rest.integer(read.header.vendor);
  rest.integer(reserved);
  rest.integer(read.section_count);
  rest.integer(file_size);
  rest.integer(read.header.memory_size);
  rest.integer(read.header.created_ns);
  rest.integer(read.header.vcpu_count);
  rest.integer(reserved_too);
  if (reserved != 0 || reserved_too != 0) {
    return damaged("its header is damaged: what is reserved is not 0");
  }
  if (bytes.size() != file_size) {
    return damaged((bytes.size() < file_size ? "it is cut off: " : "something follows it: ") +
                   std::to_string(bytes.size()) + " bytes are there, the file had " +
                   std::to_string(file_size));
  }
  if (read.section_count > kMaxSnapshotSections) {
    return damaged("it has " + std::to_string(read.section_count) + " sections, more than there can be");
  }
  return read;
}

bool is_name(std::string_view name) {
  return !name.empty() &&
         std::all_of(name.begin(), name.end(), [](char each) { return each >= 'a' && each <= 'z'; });
}

// Takes the next section from the front of `bytes`.
Result<SnapshotSection> take_section(std::span<const std::byte>& bytes, std::size_t number) {
  const std::string where = "section " + std::to_string(number) + " of the file";
  if (bytes.size() < kSectionHeader) {
    return damaged(where + " is cut off");
  }
  SnapshotSection section;
  std::array<char, SnapshotSection::kMaxName> name{};
  std::uint16_t flags = 0;
  std::uint64_t size = 0;
  std::uint64_t checksum = 0;
  Decoder decoder(bytes.first(kSectionHeader));
  decoder.raw(std::as_writable_bytes(std::span(name)));
  decoder.integer(section.index);
  decoder.integer(section.version);
  decoder.integer(flags);
  decoder.integer(size);
  decoder.integer(checksum);
  if (size > bytes.size() - kSectionHeader) {
    return damaged(where + " is cut off: it has " + std::to_string(size) + " bytes, " +
                   std::to_string(bytes.size() - kSectionHeader) + " are left");
  }
  section.payload = bytes.subspan(kSectionHeader, size);
  if (checksum != crc64(section.payload, crc64(bytes.first(kSectionHeader - kChecksum)))) {
    return damaged(where + " is damaged: the checksum is wrong");
  }
  section.name.assign(name.begin(), std::find(name.begin(), name.end(), '\0'));
  const bool padded = std::all_of(name.begin() + static_cast<std::ptrdiff_t>(section.name.size()), name.end(),
                                  [](char each) { return each == '\0'; });
  if (!is_name(section.name) || !padded || (flags & ~kOptionalFlag) != 0) {
    return damaged(where + " has a name or flags that none can have");
  }
  section.optional = (flags & kOptionalFlag) != 0;
  bytes = bytes.subspan(kSectionHeader + size);
  return section;
}

}  // namespace

std::string SnapshotVersion::to_string() const {
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

std::string SnapshotSection::title() const {
  return name + " " + std::to_string(index);
}

std::vector<std::byte> write_container(const SnapshotHeader& header,
                                       std::span<const SnapshotSection> sections) {
  std::uint64_t file_size = kHeaderSize;
  for (const SnapshotSection& section : sections) {
    file_size += kSectionHeader + section.payload.size();
  }
  Bytes bytes;
  bytes.reserve(file_size);
  Encoder encoder(bytes);
  encoder.raw(std::as_bytes(std::span(kMagic)));
  encoder.integer(header.version.major);
  encoder.integer(header.version.minor);
  encoder.integer(header.version.patch);
  encoder.integer(kHeaderSize);
  encoder.integer(header.architecture);
  encoder.integer(header.vendor);
  encoder.integer(std::uint16_t{0});
  encoder.integer(static_cast<std::uint32_t>(sections.size()));
  encoder.integer(file_size);
  encoder.integer(header.memory_size);
  encoder.integer(header.created_ns);
  encoder.integer(header.vcpu_count);
  encoder.integer(std::uint32_t{0});
  append_checksum(bytes, crc64(bytes));

  for (const SnapshotSection& section : sections) {
    const std::size_t start = bytes.size();
    std::array<char, SnapshotSection::kMaxName> name{};
    std::copy_n(section.name.begin(), std::min(section.name.size(), name.size()), name.begin());
    encoder.raw(std::as_bytes(std::span(name)));
    encoder.integer(section.index);
    encoder.integer(section.version);
    encoder.integer(section.optional ? kOptionalFlag : std::uint16_t{0});
    encoder.integer(std::uint64_t{section.payload.size()});
    append_checksum(bytes, crc64(section.payload, crc64(std::span(bytes).subspan(start))));
    encoder.raw(section.payload);
  }
  return bytes;
}

Result<SnapshotContainer> read_container(std::span<const std::byte> bytes) {
  if (bytes.size() > kMaxSnapshotState) {
    return damaged("it has " + std::to_string(bytes.size()) +
                   " bytes, more than a snapshot's state can have");
  }
  MAYFLY_TRY_ASSIGN(const ReadHeader read, read_header(bytes));
  SnapshotContainer container{.header = read.header, .sections = {}};
  std::span<const std::byte> rest = bytes.subspan(kHeaderSize);
  for (std::uint32_t number = 0; number < read.section_count; ++number) {
    MAYFLY_TRY_ASSIGN(SnapshotSection section, take_section(rest, number));
    container.sections.push_back(std::move(section));
  }
  if (!rest.empty()) {
    return damaged(std::to_string(rest.size()) + " bytes follow its last section");
  }
  return container;
}

}  // namespace mayfly
