#include "boot/kernel_image.h"

#include <elf.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "boot/arch.h"
#include "boot/elf_image.h"
#include "boot/image_file.h"

namespace mayfly {
namespace {

// Packed kernels are what people most often offer by mistake: name the packer.
struct PackerMagic {
  std::string_view bytes;
  const char* name;
};
constexpr std::array kPackers = {
    PackerMagic{"\x1f\x8b", "gzip"},
    PackerMagic{std::string_view("\xfd"
                                 "7zXZ\0",
                                 6),
                "xz"},
    PackerMagic{"\x28\xb5\x2f\xfd", "zstd"},
    PackerMagic{std::string_view("\x02\x21\x4c\x18", 4), "lz4"},
    PackerMagic{"\x04\x22\x4d\x18", "lz4"},
    PackerMagic{"BZh", "bzip2"},
};

}  // namespace

Result<LoadedKernel> load_kernel(GuestMemory& memory, const UniqueFd& file, std::string_view path,
                                 BootProtocolChoice choice) {
  MAYFLY_TRY_ASSIGN(const ImageFile image, ImageFile::examine(file, "kernel image", path));
  if (image.size() == 0) {
    return image.refuse("is empty");
  }
  std::array<char, 8> start{};
  MAYFLY_TRY(image.read(
      0,
      std::as_writable_bytes(std::span(start)).first(std::min<std::uint64_t>(start.size(), image.size()))));
  const std::string_view magic(start.data(), start.size());
  if (magic.starts_with(std::string_view(ELFMAG, SELFMAG))) {
    return load_elf(memory, image, choice);
  }
  MAYFLY_TRY_ASSIGN(const bool bzimage, arch::is_bzimage(image));
  if (bzimage) {
    return arch::load_bzimage(memory, image, choice);
  }
  for (const PackerMagic& packer : kPackers) {
    if (magic.starts_with(packer.bytes)) {
      return image.refuse(std::string("is packed with ") + packer.name + ": unpack it first");
    }
  }
  return image.refuse("is neither an ELF file nor a bzImage");
}

}  // namespace mayfly
