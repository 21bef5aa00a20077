// ELF kernels: static x86-64 executables, loaded by the physical addresses of their segments.
#pragma once

#include "base/result.h"
#include "boot/image_file.h"
#include "boot/kernel_image.h"

namespace mayfly {

// As load_kernel(), for an image that begins with the ELF magic.
Result<LoadedKernel> load_elf(GuestMemory& memory, const ImageFile& image, BootProtocolChoice choice);

}  // namespace mayfly
