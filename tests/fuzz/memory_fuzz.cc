// Runs a sequence of operations, read from the input, on a GuestMemory and on a plain model of it, and aborts
// where the two differ: in what is accepted, in what is read, in the contents at the end.
//
// Input: one byte chooses the layout, one the backing; then, until the input ends, one byte an operation
// followed by its operands. Addresses are mostly a border of the layout plus a small offset, so that ends,
// holes and wraps are met at once; one form takes all 64 bits from the input.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "base/check.h"
#include "memory/guest_memory.h"

namespace mayfly {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max() - 2 * kPage + 1;
constexpr std::uint64_t kFileSize = 3 * kPage + 777;
constexpr std::size_t kMaxOperations = 64;

class Input {
 public:
  explicit Input(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }

  // The next T of the input; zeros where it has ended.
  template <typename T>
  T take() {
    T value{};
    const std::size_t size = std::min(sizeof(T), bytes_.size());
    if (size > 0) {  // no bytes: data() may be null, which memcpy() must not be given
      std::memcpy(&value, bytes_.data(), size);
    }
    bytes_ = bytes_.subspan(size);
    return value;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

struct Area {
  std::uint64_t base;
  std::vector<std::byte> bytes;
};

// What GuestMemory should be: areas of bytes, looked at with arithmetic that cannot wrap.
class Model {
 public:
  explicit Model(std::span<const GuestRange> ranges) {
    for (const GuestRange& range : ranges) {
      areas_.push_back({range.base().value(), std::vector<std::byte>(range.size())});
    }
  }

  const std::vector<Area>& areas() const { return areas_; }

  // The bytes [address, address + length), or nothing where no area holds all of them. No bytes are in no
  // area.
  std::optional<std::span<std::byte>> find(std::uint64_t address, std::uint64_t length) {
    for (Area& area : areas_) {
      if (length > 0 && address >= area.base &&
          Wide{address} + length <= Wide{area.base} + area.bytes.size()) {
        return std::span(area.bytes).subspan(address - area.base, length);
      }
    }
    return std::nullopt;
  }

 private:
  std::vector<Area> areas_;
};

std::vector<GuestRange> layout(std::uint8_t choice) {
  const auto range = [](std::uint64_t base, std::uint64_t size) {
    return *GuestRange::make(GuestAddress(base), size);
  };
  switch (choice % 5) {
    case 0:
      return {range(0, 4 * kPage)};
    case 1:
      return {range(0, 2 * kPage), range(2 * kPage, kPage), range(5 * kPage, 3 * kPage)};
    case 2:
      return {range(0xc0000000 - 2 * kPage, 2 * kPage), range(0x100000000, 2 * kPage)};
    case 3:
      return {range(kPage, kPage), range(kTop, 2 * kPage)};
    default:
      return {range(0x100000000 - 2 * kPage, 4 * kPage)};
  }
}

std::uint64_t take_address(Input& input, std::span<const GuestRange> ranges) {
  const auto form = input.take<std::uint8_t>();
  if (form == 0xff) {
    return input.take<std::uint64_t>();
  }
  const GuestRange& range = ranges[form % ranges.size()];
  const auto offset = static_cast<std::uint64_t>(std::int64_t{input.take<std::int16_t>()});
  const std::uint64_t border = range.base().value() + ((form & 0x40) != 0 ? range.size() : 0);
  return border + offset;  // may wrap: that is wanted
}

std::uint64_t take_length(Input& input) {
  const auto form = input.take<std::uint8_t>();
  if (form >= 0xf0) {
    return input.take<std::uint64_t>();
  }
  return form >= 0x80 ? input.take<std::uint16_t>() : form;
}

// A file whose every byte tells where it is. Made once.
const UniqueFd& test_file() {
  static const UniqueFd file = [] {
    UniqueFd fd(::memfd_create("memory_fuzz", MFD_CLOEXEC));
    std::array<std::byte, kFileSize> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<std::byte>((i * 31 + i / 251) & 0xff);
    }
    MAYFLY_CHECK(::pwrite(fd.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
                 "the test file can be written");
    return fd;
  }();
  return file;
}

class Run {
 public:
  Run(Input& input, std::span<const GuestRange> ranges, Backing backing)
      : input_(input),
        ranges_(ranges),
        memory_(std::move(GuestMemory::create(ranges, backing).value())),
        model_(ranges) {}

  void operation() {
    const auto kind = input_.take<std::uint8_t>();
    const std::uint64_t address = take_address(input_, ranges_);
    switch (kind % 10) {
      case 0:
        return read(address);
      case 1:
        return write(address);
      case 2:
        return fill(address);
      case 3:
        return slice(address);
      case 4:
        return system_call(address);
      case 5:
        return file(address);
      case 6:
        return ordered<std::uint8_t, std::uint16_t>(address);
      case 7:
        return ordered<std::uint32_t, std::uint64_t>(address);
      case 8:
        return range(address);
      default:
        return object(address);
    }
  }

  void compare_all() {
    for (const Area& area : model_.areas()) {
      std::vector<std::byte> seen(area.bytes.size());
      MAYFLY_CHECK(memory_.read(GuestAddress(area.base), seen).has_value(), "a whole range can be read");
      MAYFLY_CHECK(seen == area.bytes, "the contents are those of the model");
    }
  }

 private:
  std::vector<std::byte> take_bytes(std::size_t size) {
    std::vector<std::byte> bytes(size);
    auto value = input_.take<std::uint8_t>();
    for (std::byte& byte : bytes) {
      byte = static_cast<std::byte>(value);
      value = static_cast<std::uint8_t>(value * 5 + 1);
    }
    return bytes;
  }

  void read(std::uint64_t address) {
    const std::uint64_t length = std::min<std::uint64_t>(take_length(input_), 8 * kPage);
    std::vector<std::byte> seen(length, std::byte{0xcd});
    const auto want = model_.find(address, length);
    const auto got = memory_.read(GuestAddress(address), seen);
    MAYFLY_CHECK(got.has_value() == (length == 0 || want.has_value()), "read accepts what the model does");
    if (want) {
      MAYFLY_CHECK(std::equal(seen.begin(), seen.end(), want->begin()), "read gives what the model holds");
    } else {
      MAYFLY_CHECK(
          std::count(seen.begin(), seen.end(), std::byte{0xcd}) == static_cast<std::ptrdiff_t>(length),
          "a refused read does nothing");
    }
  }

  void write(std::uint64_t address) {
    const auto bytes = take_bytes(std::min<std::uint64_t>(take_length(input_), 8 * kPage));
    const auto want = model_.find(address, bytes.size());
    const auto got = memory_.write(GuestAddress(address), bytes);
    MAYFLY_CHECK(got.has_value() == (bytes.empty() || want.has_value()), "write accepts what the model does");
    if (want) {
      std::copy(bytes.begin(), bytes.end(), want->begin());
    }
  }

  void fill(std::uint64_t address) {
    const std::uint64_t length = take_length(input_);
    const auto value = std::byte{input_.take<std::uint8_t>()};
    const auto want = model_.find(address, length);
    const auto got = memory_.fill(GuestAddress(address), length, value);
    MAYFLY_CHECK(got.has_value() == (length == 0 || want.has_value()), "fill accepts what the model does");
    if (want) {
      std::fill(want->begin(), want->end(), value);
    }
  }

  void slice(std::uint64_t address) {
    const std::uint64_t length = take_length(input_);
    const auto want = model_.find(address, length);
    const auto got = memory_.slice(GuestAddress(address), length);
    MAYFLY_CHECK(got.has_value() == want.has_value(), "slice accepts what the model does");
    if (!got) {
      MAYFLY_CHECK(got.error().address.value() == address && got.error().length == length,
                   "a fault names itself");
      return;
    }
    MAYFLY_CHECK(got->size() == length && got->address().value() == address, "a slice is what was asked for");
    const auto bytes = take_bytes(length / 2);
    got->copy_from(bytes);
    std::copy(bytes.begin(), bytes.end(), want->begin());
    std::vector<std::byte> seen(length);
    got->copy_to(seen);
    MAYFLY_CHECK(std::equal(seen.begin(), seen.end(), want->begin()), "a slice gives what the model holds");
  }

  void system_call(std::uint64_t address) {
    const std::uint64_t length = take_length(input_);
    const auto want = model_.find(address, length);
    const auto got = memory_.slice(GuestAddress(address), length);
    MAYFLY_CHECK(got.has_value() == want.has_value(), "slice accepts what the model does");
    if (got) {
      const iovec vector = got->for_system_call();
      const auto offset = off_t{input_.take<std::uint16_t>()};
      const ssize_t into_guest = ::preadv(test_file().get(), &vector, 1, offset);
      const ssize_t into_model = ::pread(test_file().get(), want->data(), want->size(), offset);
      MAYFLY_CHECK(into_guest >= 0 && into_guest == into_model, "a system call reaches the whole slice");
    }
  }

  void file(std::uint64_t address) {
    const std::uint64_t length = take_length(input_);
    const std::uint64_t offset = take_length(input_);
    const auto want = model_.find(address, length);
    const bool in_file = Wide{offset} + length <= kFileSize;
    const auto got = memory_.load_file(GuestAddress(address), test_file(), offset, length, "file");
    const bool accepted = length == 0 || (want.has_value() && in_file);
    MAYFLY_CHECK(got.has_value() == accepted, "a file is taken where the model says so");
    if (!want) {
      return;
    }
    // A load that fails may have written as much as the file had; this one does.
    const auto file_offset = static_cast<off_t>(std::min<std::uint64_t>(offset, kFileSize));
    MAYFLY_CHECK(::pread(test_file().get(), want->data(), want->size(), file_offset) >= 0,
                 "the test file can be read");
  }

  template <typename Small, typename Large>
  void ordered(std::uint64_t address) {
    const auto value = input_.take<std::uint64_t>();
    one_ordered(address, static_cast<Small>(value));
    one_ordered(address, static_cast<Large>(value));
  }

  template <typename T>
  void one_ordered(std::uint64_t address, T value) {
    const auto want = model_.find(address, sizeof(T));
    const auto slice = memory_.slice(GuestAddress(address), sizeof(T));
    MAYFLY_CHECK(slice.has_value() == want.has_value(), "integers in RAM are taken");
    if (slice && address % sizeof(T) == 0) {
      const T loaded = slice->template load<T>(0);
      MAYFLY_CHECK(std::memcmp(&loaded, want->data(), sizeof(T)) == 0, "a load gives what the model holds");
      slice->template store<T>(0, value);
      std::memcpy(want->data(), &value, sizeof(T));
    }
  }

  void range(std::uint64_t address) {
    const std::uint64_t length = take_length(input_);
    const auto made = GuestRange::make(GuestAddress(address), length);
    const Wide end = Wide{address} + length;
    MAYFLY_CHECK(made.has_value() == (length > 0 && end <= Wide{1} << 64),
                 "a range ends within the address space");
    if (!made) {
      return;
    }
    MAYFLY_CHECK(memory_.contains(*made) == model_.find(address, length).has_value(),
                 "contains knows the ranges");
    const std::uint64_t probe = take_address(input_, ranges_);
    MAYFLY_CHECK(made->contains(GuestAddress(probe)) == (probe >= address && probe < end),
                 "a range has its addresses");
    if (const auto other = GuestRange::make(GuestAddress(probe), take_length(input_))) {
      const Wide other_end = Wide{probe} + other->size();
      MAYFLY_CHECK(made->contains(*other) == (probe >= address && other_end <= end),
                   "containment is that of sets");
      MAYFLY_CHECK(made->overlaps(*other) == (probe < end && address < other_end), "overlap is that of sets");
      MAYFLY_CHECK(made->overlaps(*other) == other->overlaps(*made), "overlap is symmetric");
    }
  }

  void object(std::uint64_t address) {
    using Object = std::array<std::byte, 16>;
    const auto want = model_.find(address, sizeof(Object));
    const auto value = input_.take<Object>();
    const auto before = memory_.read_object<Object>(GuestAddress(address));
    const auto written = memory_.write_object(GuestAddress(address), value);
    MAYFLY_CHECK(before.has_value() == want.has_value() && written.has_value() == want.has_value(),
                 "objects in RAM are taken");
    if (want) {
      MAYFLY_CHECK(std::equal(before->begin(), before->end(), want->begin()),
                   "an object is what the model holds");
      std::copy(value.begin(), value.end(), want->begin());
    }
  }

  Input& input_;
  std::span<const GuestRange> ranges_;
  GuestMemory memory_;
  Model model_;
};

}  // namespace
}  // namespace mayfly

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mayfly::Input input(std::span(data, size));
  const auto ranges = mayfly::layout(input.take<std::uint8_t>());
  const std::array backings = {mayfly::Backing::kAnonymous, mayfly::Backing::kTransparentHuge,
                               mayfly::Backing::kMemfd};
  mayfly::Run run(input, ranges, backings[input.take<std::uint8_t>() % backings.size()]);
  for (std::size_t i = 0; i < mayfly::kMaxOperations && !input.empty(); ++i) {
    run.operation();
  }
  run.compare_all();
  return 0;
}
