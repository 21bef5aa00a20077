#include "boot/x86_64/bzimage.h"

#include <asm/bootparam.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/checked.h"
#include "boot/x86_64/layout.h"

namespace mayfly::x86_64 {
namespace {

constexpr std::uint64_t kSectorSize = 512;
constexpr std::uint16_t kBootFlag = 0xaa55;
constexpr std::uint32_t kHeaderMagic = 0x53726448;  // "HdrS"
constexpr std::uint64_t kHeaderMagicOffset = 0x202;
// "The end of setup header can be calculated as follows: 0x0202 + byte value at offset 0x0201": the target
// of the jump instruction at 0x200.
constexpr std::uint64_t kJumpBase = 0x202;
constexpr std::uint16_t kMinVersion = 0x020c;  // the first with xloadflags
constexpr std::uint64_t kEntry64Offset = 0x200;
constexpr std::uint64_t kSyssizeUnit = 16;

struct Header {
  setup_header fields;
  std::vector<std::byte> raw;
};

Result<Header> read_header(const ImageFile& image) {
  MAYFLY_TRY_ASSIGN(const auto start, image.read_object<setup_header>(kSetupHeaderStart));
  if (start.boot_flag != kBootFlag) {
    return image.refuse("has boot flag " + hex(start.boot_flag) + " instead of " + hex(kBootFlag));
  }
  if (start.version < kMinVersion) {
    return image.refuse("has boot protocol version " + hex(start.version) + ", older than " +
                        hex(kMinVersion) + " (Linux 3.8)");
  }
  const std::uint64_t end = kJumpBase + (start.jump >> 8);
  if (end < kSetupHeaderStart + offsetof(setup_header, handover_offset) || end > kSetupHeaderLimit) {
    return image.refuse("has a setup header that ends at " + hex(end));
  }
  Header header{start, std::vector<std::byte>(end - kSetupHeaderStart)};
  MAYFLY_TRY(image.read(kSetupHeaderStart, header.raw));
  return header;
}

Result<void> check_header(const ImageFile& image, const setup_header& header) {
  if ((header.loadflags & LOADED_HIGH) == 0) {
    return image.refuse("is not to be loaded high (a zImage)");
  }
  if ((header.xloadflags & XLF_KERNEL_64) == 0) {
    return image.refuse("has no 64-bit entry (XLF_KERNEL_64): a 32-bit kernel");
  }
  if (header.kernel_alignment == 0 || (header.kernel_alignment & (header.kernel_alignment - 1)) != 0) {
    return image.refuse("has a kernel alignment of " + hex(header.kernel_alignment) +
                        ", which is not a power of two");
  }
  return {};
}

// Where the kernel goes. boot.rst, init_size: a kernel runs at its preferred address or above, wherever it
// was loaded, so that loading it anywhere lower would only make it move.
Result<GuestAddress> choose_address(const ImageFile& image, const setup_header& header) {
  const std::uint64_t preferred = header.pref_address;
  if (header.relocatable_kernel == 0) {
    if (preferred < layout::kHighMemoryStart) {
      return image.refuse("cannot be moved from " + hex(preferred) + ", but a kernel must lie above " +
                          hex(layout::kHighMemoryStart) + " (below it are the boot data)");
    }
    return GuestAddress(preferred);
  }
  const auto aligned =
      checked_align_up(std::max(preferred, layout::kHighMemoryStart), header.kernel_alignment);
  if (!aligned) {
    return image.refuse("prefers the address " + hex(preferred) + ", past the end of the address space");
  }
  return GuestAddress(*aligned);
}

}  // namespace

Result<bool> is_bzimage(const ImageFile& image) {
  if (!image.has(kHeaderMagicOffset, sizeof(kHeaderMagic))) {
    return false;
  }
  MAYFLY_TRY_ASSIGN(const auto magic, image.read_object<std::uint32_t>(kHeaderMagicOffset));
  return magic == kHeaderMagic;
}

Result<LoadedKernel> load_bzimage(GuestMemory& memory, const ImageFile& image, BootProtocolChoice choice) {
  if (choice == BootProtocolChoice::kPvh) {
    return fail(ErrorCode::kInvalidArgument,
                image.name() + ": is a bzImage, which cannot be entered by PVH; use the ELF file (vmlinux)");
  }
  MAYFLY_TRY_ASSIGN(Header header, read_header(image));
  const setup_header& fields = header.fields;
  MAYFLY_TRY(check_header(image, fields));

  // "If this field contains 0, the real value is 4."
  const std::uint64_t setup_sectors = fields.setup_sects == 0 ? 4 : fields.setup_sects;
  const std::uint64_t code_offset = (setup_sectors + 1) * kSectorSize;
  const std::uint64_t code_size = fields.syssize * kSyssizeUnit;
  if (code_size <= kEntry64Offset) {
    return image.refuse("has only " + std::to_string(code_size) +
                        " bytes of kernel, none at its 64-bit entry");
  }
  if (!image.has(code_offset, code_size)) {
    return image.refuse("ends at " + hex(image.size()) + ", before its " + hex(code_size) +
                        " bytes of kernel at " + hex(code_offset) + " do");
  }
  if (std::uint64_t{fields.payload_offset} + fields.payload_length > code_size) {
    return image.refuse("has a payload of " + hex(fields.payload_length) + " bytes at " +
                        hex(fields.payload_offset) + " of a kernel of " + hex(code_size) + " bytes");
  }

  MAYFLY_TRY_ASSIGN(const GuestAddress load, choose_address(image, fields));
  const std::uint64_t needed = std::max<std::uint64_t>(fields.init_size, code_size);
  const auto extent = GuestRange::make(load, needed);
  if (!extent || !memory.contains(*extent)) {
    return image.refuse("needs " + std::to_string(needed) + " bytes of memory at " + hex(load.value()) +
                        " to start, which this guest does not have: give it more memory");
  }
  if (extent->last() >= GuestAddress(layout::kIdentityMapEnd)) {
    return image.refuse("reaches up to " + hex(extent->last().value()) +
                        ", but the 64-bit entry needs it below " + hex(layout::kIdentityMapEnd));
  }
  MAYFLY_TRY(image.place(memory, load, code_offset, code_size));
  return LoadedKernel{KernelFormat::kBzImage,
                      // Inside the extent: the code is longer than the entry's offset.
                      BootEntry{BootProtocol::kLinux64, GuestAddress(load.value() + kEntry64Offset)}, *extent,
                      // "The maximum size of the command line without the terminating zero."
                      std::uint64_t{fields.cmdline_size} + 1, GuestAddress(fields.initrd_addr_max),
                      std::move(header.raw)};
}

}  // namespace mayfly::x86_64
