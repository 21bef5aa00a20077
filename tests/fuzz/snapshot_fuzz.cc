// The state file of a snapshot, of anyone's making: as it comes, and once more with its sizes and checksums
// made right, so that what lies behind them is reached.
//
// Held: nothing aborts; what is refused is refused with a reason; what is accepted can be written, is then
// the same again, and can be shown to a person on a terminal.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/crc64.h"
#include "snapshot/describe.h"
#include "snapshot/micro_vm_state.h"
#include "support/fuzz_input.h"

namespace mayfly::testing {
namespace {

// Of docs/snapshot-format.md.
constexpr std::size_t kHeader = 64;
constexpr std::size_t kFileSize = 24;
constexpr std::size_t kSectionHeader = 32;
constexpr std::size_t kSectionSize = 16;
constexpr std::size_t kChecksum = 8;

using Bytes = std::vector<std::byte>;

void put(Bytes& bytes, std::size_t at, std::uint64_t value) {
  for (std::size_t index = 0; index < 8; ++index) {
    bytes[at + index] = static_cast<std::byte>(value >> (8 * index));
  }
}

std::uint64_t get(const Bytes& bytes, std::size_t at) {
  std::uint64_t value = 0;
  for (std::size_t index = 0; index < 8; ++index) {
    value |= static_cast<std::uint64_t>(bytes[at + index]) << (8 * index);
  }
  return value;
}

void seal(Bytes& bytes) {
  if (bytes.size() < kHeader) {
    return;
  }
  put(bytes, kFileSize, bytes.size());
  put(bytes, kHeader - kChecksum, crc64(std::span(bytes).first(kHeader - kChecksum)));
  std::size_t at = kHeader;
  while (bytes.size() - at >= kSectionHeader) {
    const std::uint64_t room = bytes.size() - at - kSectionHeader;
    const std::uint64_t size = std::min(get(bytes, at + kSectionSize), room);
    put(bytes, at + kSectionSize, size);
    const std::span<const std::byte> section = std::span(bytes).subspan(at, kSectionHeader + size);
    put(bytes, at + kSectionHeader - kChecksum,
        crc64(section.subspan(kSectionHeader), crc64(section.first(kSectionHeader - kChecksum))));
    at += kSectionHeader + size;
  }
}

void try_file(std::span<const std::byte> bytes) {
  const auto state = decode(bytes);
  const auto text = describe_snapshot(bytes);
  hold(state.has_value() == text.has_value(), "what can be read can be described");
  if (!state) {
    hold(!state.error().message().empty(), "a refusal has a reason");
    return;
  }
  hold(std::all_of(text->begin(), text->end(),
                   [](char each) { return each == '\n' || (each >= ' ' && each <= '~'); }),
       "a terminal takes it for text");
  const auto written = encode(*state);
  hold(written.has_value(), "what was read can be written");
  const auto again = decode(*written);
  hold(again.has_value(), "what was written can be read");
  hold(*encode(*again) == *written, "a state has one encoding");
}

}  // namespace
}  // namespace mayfly::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  mayfly::testing::try_file(bytes);
  mayfly::testing::Bytes sealed(bytes.begin(), bytes.end());
  mayfly::testing::seal(sealed);
  mayfly::testing::try_file(sealed);
  return 0;
}
