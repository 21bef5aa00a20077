// Where an initrd goes: the input is four little-endian 64-bit numbers, the kernel's base and size, the
// highest address that it allows, and the file's size. Refused must only be what fits nowhere.
#include <unistd.h>

#include <array>
#include <cstring>

#include "base/check.h"
#include "boot/initrd.h"
#include "boot/x86_64/layout.h"
#include "support/image_builder.h"

namespace mayfly::testing {
namespace {

constexpr std::uint64_t kMemorySize = 4 * 1024 * 1024;
constexpr std::uint64_t kPageSize = 4096;

bool may_lie(const GuestRange& range, const LoadedKernel& kernel) {
  return range.base() >= GuestAddress(x86_64::layout::kHighMemoryStart) &&
         range.last() < GuestAddress(kMemorySize) && range.last() <= kernel.initrd_last &&
         !range.overlaps(kernel.extent);
}

void fuzz(const std::array<std::uint64_t, 4>& numbers) {
  static GuestMemory memory = make_memory(kMemorySize);
  static const UniqueFd file = make_file({});
  const auto extent = GuestRange::make(GuestAddress(numbers[0]), numbers[1]);
  const std::uint64_t size = numbers[3] % (2 * kMemorySize);
  if (!extent || !memory.contains(*extent) || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0) {
    return;
  }
  const LoadedKernel kernel{
      KernelFormat::kElf, {BootProtocol::kPvh, extent->base()}, *extent, 2048, GuestAddress(numbers[2]), {}};
  const auto placed = load_initrd(memory, file, "/fuzz", kernel);
  if (placed) {
    MAYFLY_CHECK(placed->size() == size && placed->base().is_aligned(kPageSize), "whole, on a page");
    MAYFLY_CHECK(may_lie(*placed, kernel), "clear of all else");
    return;
  }
  // It shares no page with the kernel.
  const std::uint64_t first = kernel.extent.base().value() & ~(kPageSize - 1);
  const std::uint64_t last = kernel.extent.last().value() | (kPageSize - 1);
  const auto kernel_pages = GuestRange::make(GuestAddress(first), last - first + 1);
  for (std::uint64_t base = 0; base < kMemorySize; base += kPageSize) {
    const auto range = GuestRange::make(GuestAddress(base), size);
    MAYFLY_CHECK(!range || !may_lie(*range, kernel) || range->overlaps(*kernel_pages),
                 "only what fits nowhere is refused");
  }
}

}  // namespace
}  // namespace mayfly::testing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::array<std::uint64_t, 4> numbers{};
  if (size >= sizeof(numbers)) {
    std::memcpy(numbers.data(), data, sizeof(numbers));
    mayfly::testing::fuzz(numbers);
  }
  return 0;
}
