// The initial RAM disk into guest memory.
#pragma once

#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"
#include "boot/kernel_image.h"
#include "memory/guest_memory.h"

namespace mayfly {

// Loads an initrd (any bytes: what they mean is the kernel's affair) to a page-aligned address in the first
// range of RAM: right behind the kernel where there is room, else below it. Returns the bytes it takes.
// `file` and `path` as for load_kernel().
//
// kInvalidImage: not a regular file, empty, larger than any room there is (the error names both sizes).
Result<GuestRange> load_initrd(GuestMemory& memory, const UniqueFd& file, std::string_view path,
                               const LoadedKernel& kernel);

}  // namespace mayfly
