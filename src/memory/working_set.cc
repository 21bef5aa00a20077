#include "memory/working_set.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <string_view>

#include "base/crc64.h"
#include "base/file.h"

namespace mayfly {
namespace {

// As PNG's: not text, and spoilt by whoever takes it for text.
constexpr std::array<std::uint8_t, 8> kMagic = {0x89, 'M', 'F', 'W', 'S', '\r', '\n', 0x1a};
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kVersionWithoutWrites = 1;
constexpr std::uint32_t kWritten = 1U << 31;  // in a count
constexpr std::size_t kHeader = 32;
constexpr std::size_t kChecksum = 8;

template <typename T>
void append(std::vector<std::byte>& bytes, T value) {
  for (unsigned shift = 0; shift < 8 * sizeof(T); shift += 8) {
    bytes.push_back(static_cast<std::byte>(value >> shift));
  }
}

template <typename T>
T number_at(std::span<const std::byte> bytes, std::size_t offset) {
  T value = 0;
  for (std::size_t index = sizeof(T); index > 0; --index) {
    value = static_cast<T>(value << 8 | static_cast<T>(bytes[offset + index - 1]));
  }
  return value;
}

tl::unexpected<Error> refuse(const NamedFile& file, std::string_view why) {
  return fail(ErrorCode::kInvalidImage, std::string(file.name).append(": ").append(why));
}

// How many pages of the file are left for further runs after `run`; nothing where it does not fit.
bool fits(const PageRun& run, std::uint64_t file_pages, std::uint64_t& left) {
  if (run.count == 0 || run.count >= kWritten || run.page >= file_pages ||
      run.count > file_pages - run.page || run.count > left) {
    return false;
  }
  left -= run.count;
  return true;
}

}  // namespace

Result<void> write_working_set(const NamedFile& file, const WorkingSetOwner& owner,
                               std::span<const PageRun> runs) {
  const std::uint64_t pages = owner.memory_size / kGuestPage;
  std::uint64_t left = pages;
  if (runs.size() > kMaxWorkingSetRuns ||
      !std::all_of(runs.begin(), runs.end(), [&](const PageRun& run) { return fits(run, pages, left); })) {
    return fail(ErrorCode::kInvalidArgument, std::string(file.name) + ": runs of pages that no file has");
  }
  std::vector<std::byte> bytes;
  bytes.reserve(kHeader + runs.size() * 8 + kChecksum);
  for (const std::uint8_t byte : kMagic) {
    append(bytes, byte);
  }
  append(bytes, kVersion);
  append(bytes, static_cast<std::uint32_t>(runs.size()));
  append(bytes, owner.memory_size);
  append(bytes, owner.snapshot);
  for (const PageRun& run : runs) {
    append(bytes, run.page);
    append(bytes, run.count | (run.written ? kWritten : 0));
  }
  append(bytes, crc64(bytes));
  return write_at(file.fd, 0, {bytes.data(), bytes.size()}, file.name);
}

Result<WorkingSet> WorkingSet::read(const NamedFile& file, const WorkingSetOwner& owner) {
  struct stat stat {};
  if (::fstat(file.fd.get(), &stat) != 0) {
    return fail_errno(errno, std::string("look at ").append(file.name));
  }
  if (!S_ISREG(stat.st_mode)) {
    return refuse(file, "not a regular file");
  }
  const auto size = static_cast<std::uint64_t>(stat.st_size);
  constexpr std::uint64_t kLeast = kHeader + kChecksum;
  if (size < kLeast || size > kLeast + std::uint64_t{kMaxWorkingSetRuns} * kRunSize) {
    return refuse(file, "no working set has " + std::to_string(size) + " bytes");
  }
  auto room = std::make_unique_for_overwrite<Bytes>(size);
  MAYFLY_TRY_ASSIGN(const std::size_t got, read_at(file.fd, 0, {room.get(), size}, file.name));
  if (got != size) {
    return refuse(file, "was cut short");
  }
  const std::span<const std::byte> bytes(room.get(), size);
  if (!std::equal(kMagic.begin(), kMagic.end(), bytes.begin(), [](std::uint8_t want, std::byte have) {
        return want == static_cast<std::uint8_t>(have);
      })) {
    return refuse(file, "not a working set");
  }
  const auto version = number_at<std::uint32_t>(bytes, 8);
  if (version != kVersion && version != kVersionWithoutWrites) {
    return fail(ErrorCode::kUnsupported, std::string(file.name) + ": a working set of version " +
                                             std::to_string(version) +
                                             ", and this program reads versions 1 and 2");
  }
  const std::size_t end = size - kChecksum;
  if (number_at<std::uint64_t>(bytes, end) != crc64(bytes.first(end))) {
    return refuse(file, "is damaged: its checksum is another");
  }
  const std::uint64_t count = number_at<std::uint32_t>(bytes, 12);
  if (count * kRunSize != end - kHeader) {
    return refuse(file, "is damaged: it has not as many runs as it says");
  }
  const WorkingSetOwner of = {number_at<std::uint64_t>(bytes, 16), number_at<std::uint64_t>(bytes, 24)};
  if (of.memory_size != owner.memory_size) {
    return refuse(file, "is of " + std::to_string(of.memory_size) + " bytes of memory, not of " +
                            std::to_string(owner.memory_size));
  }
  if (of.snapshot != owner.snapshot) {
    return refuse(file, "is of another snapshot");
  }
  const std::uint64_t pages = owner.memory_size / kGuestPage;
  std::uint64_t left = pages;
  WorkingSet set(std::move(room), bytes.subspan(kHeader, end - kHeader),
                 version == kVersionWithoutWrites ? 0 : kWritten);
  for (std::size_t index = 0; index < set.size(); ++index) {
    if (!fits(set[index], pages, left)) {
      return refuse(file, "run " + std::to_string(index) + " is none of that memory");
    }
  }
  set.pages_ = pages - left;
  return set;
}

PageRun WorkingSet::operator[](std::size_t index) const {
  const auto count = number_at<std::uint32_t>(runs_, index * kRunSize + 4);
  return {.page = number_at<std::uint32_t>(runs_, index * kRunSize),
          .count = count & ~written_,
          .written = (count & written_) != 0};
}

}  // namespace mayfly
