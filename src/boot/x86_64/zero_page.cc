#include "boot/x86_64/zero_page.h"

#include <asm/bootparam.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "boot/x86_64/bzimage.h"
#include "boot/x86_64/layout.h"
#include "boot/x86_64/memory_map.h"

namespace mayfly::x86_64 {
namespace {

static_assert(sizeof(boot_params) == 4096);
static_assert(offsetof(boot_params, hdr) == kSetupHeaderStart);
static_assert(offsetof(boot_params, edd_mbr_sig_buffer) == kSetupHeaderLimit);

constexpr std::uint8_t kUndefinedLoader = 0xff;  // boot.rst, type_of_loader: no assigned id

// What an ELF kernel, which has no setup header, looks at of one.
setup_header make_elf_header() {
  setup_header header{};
  header.boot_flag = 0xaa55;
  header.header = 0x53726448;  // "HdrS"
  header.version = 0x020f;     // not 0: the kernel would take the page for not yet copied and copy it again
  header.loadflags = LOADED_HIGH;
  header.kernel_alignment = 0x1000000;
  return header;
}

constexpr std::uint32_t low_half(std::uint64_t value) {
  return static_cast<std::uint32_t>(value);
}
constexpr std::uint32_t high_half(std::uint64_t value) {
  return static_cast<std::uint32_t>(value >> 32);
}

}  // namespace

Result<void> write_zero_page(GuestMemory& memory, const BootPlan& plan) {
  boot_params params{};
  if (plan.kernel.format == KernelFormat::kBzImage) {
    // The whole header as the image has it, also fields that are newer than our struct setup_header.
    const std::vector<std::byte>& header = plan.kernel.setup_header;
    MAYFLY_CHECK(header.size() <= kSetupHeaderLimit - kSetupHeaderStart, "checked when the image was loaded");
    std::array<std::byte, sizeof(params)> page{};
    std::memcpy(page.data() + kSetupHeaderStart, header.data(), header.size());
    std::memcpy(&params, page.data(), sizeof(params));
    params.hdr.code32_start = low_half(plan.kernel.extent.base().value());
  } else {
    params.hdr = make_elf_header();
  }
  params.hdr.type_of_loader = kUndefinedLoader;
  params.hdr.cmd_line_ptr = low_half(layout::kCommandLine);
  params.hdr.cmdline_size = static_cast<std::uint32_t>(plan.kernel.command_line_max - 1);
  if (plan.initrd) {
    params.hdr.ramdisk_image = low_half(plan.initrd->base().value());
    params.ext_ramdisk_image = high_half(plan.initrd->base().value());
    params.hdr.ramdisk_size = low_half(plan.initrd->size());
    params.ext_ramdisk_size = high_half(plan.initrd->size());
  }
  if (plan.rsdp) {
    params.acpi_rsdp_addr = plan.rsdp->value();
  }
  const std::vector<MemoryMapEntry> map = make_memory_map(memory);
  if (map.size() > E820_MAX_ENTRIES_ZEROPAGE) {
    return fail(ErrorCode::kInvalidArgument, "zero page: memory in " + std::to_string(map.size()) +
                                                 " pieces is more than the " +
                                                 std::to_string(E820_MAX_ENTRIES_ZEROPAGE) + " it can list");
  }
  for (const MemoryMapEntry& entry : map) {
    params.e820_table[params.e820_entries++] = {entry.range.base().value(), entry.range.size(),
                                                static_cast<std::uint32_t>(entry.type)};
  }
  const auto written = memory.write_object(GuestAddress(layout::kZeroPage), params);
  if (!written) {
    return tl::make_unexpected(written.error().to_error().within("write the zero page"));
  }
  return {};
}

}  // namespace mayfly::x86_64
