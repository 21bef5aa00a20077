#include "boot/initrd.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "boot/arch.h"
#include "boot/image_file.h"

namespace mayfly {
namespace {

namespace layout = arch::layout;

constexpr std::uint64_t kPageSize = 4096;

constexpr std::uint64_t page_down(std::uint64_t address) {
  return address & ~(kPageSize - 1);
}

// [begin, end), of which `begin` starts a page; empty where end <= begin.
struct Gap {
  std::uint64_t begin;
  std::uint64_t end;
  std::uint64_t size() const { return end > begin ? end - begin : 0; }
};

}  // namespace

Result<GuestRange> load_initrd(GuestMemory& memory, const UniqueFd& file, std::string_view path,
                               const LoadedKernel& kernel) {
  MAYFLY_TRY_ASSIGN(const ImageFile image, ImageFile::examine(file, "initrd", path));
  if (image.size() == 0) {
    return image.refuse("is empty");
  }
  // The zero page has ext_ fields for addresses from 4 GiB on, but not every kernel reads them: stay below.
  const GuestRange& ram = memory.regions().front().range;
  const std::uint64_t last =
      std::min({ram.last().value(), kernel.initrd_last.value(), layout::kMmioGapEnd - 1});
  const std::uint64_t end = last + 1;
  const std::uint64_t start = std::max(page_down(ram.base().value()), layout::kHighMemoryStart);

  std::array<Gap, 2> gaps{Gap{start, end}, Gap{0, 0}};
  const std::uint64_t kernel_first = kernel.extent.base().value();
  const std::uint64_t kernel_last = kernel.extent.last().value();
  if (kernel_first < end) {  // a kernel behind `end` is in nobody's way
    gaps[0] = {kernel_last < end ? std::max(page_down(kernel_last) + kPageSize, start) : end, end};
    gaps[1] = {start, page_down(kernel_first)};
  }
  for (const Gap& gap : gaps) {
    // The file's size has no bound: compare before rounding.
    if (image.size() > gap.size()) {
      continue;
    }
    // At the start: it then shares the kernel's last huge page, one less for the host to clear.
    const auto range = GuestRange::make(GuestAddress(gap.begin), image.size());
    if (range && memory.contains(*range)) {
      MAYFLY_TRY(image.place(memory, range->base(), 0, range->size()));
      return *range;
    }
  }
  return image.refuse("has " + std::to_string(image.size()) +
                      " bytes, but the most that fits beside the kernel at [" + hex(kernel_first) + ", " +
                      hex(kernel_last) + "] is " + std::to_string(std::max(gaps[0].size(), gaps[1].size())) +
                      " bytes: give the guest more memory");
}

}  // namespace mayfly
