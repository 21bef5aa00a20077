// bzImages, by the 64-bit entry of the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst, cited
// below).
#pragma once

#include <cstddef>

#include "base/result.h"
#include "boot/image_file.h"
#include "boot/kernel_image.h"

namespace mayfly::x86_64 {

// Where the setup header starts, in the image as in struct boot_params, and where its room there ends.
inline constexpr std::size_t kSetupHeaderStart = 0x1f1;
inline constexpr std::size_t kSetupHeaderLimit = 0x290;

// Whether the image carries the "HdrS" mark of a bzImage. Too short a file does not.
Result<bool> is_bzimage(const ImageFile& image);

// As load_kernel(), for an image for which is_bzimage() holds.
Result<LoadedKernel> load_bzimage(GuestMemory& memory, const ImageFile& image, BootProtocolChoice choice);

}  // namespace mayfly::x86_64
