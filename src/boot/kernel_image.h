// Kernel images into guest memory: ELF vmlinux files and bzImages for x86-64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "boot/boot.h"
#include "memory/guest_memory.h"

namespace mayfly {

enum class KernelFormat : std::uint8_t { kElf, kBzImage };

// A kernel that lies in guest memory, and what its image says about how to start it.
struct LoadedKernel {
  KernelFormat format;
  BootEntry entry;
  // From the kernel's first byte to the last that it needs before it reads the memory map (BSS and, for a
  // bzImage, the room it unpacks itself into): nothing else may be placed here.
  GuestRange extent;
  std::uint64_t command_line_max;  // bytes of command line that the kernel takes, the NUL included
  GuestAddress initrd_last;        // the highest address that an initrd's last byte may have
  // bzImage only: the setup header as the image has it, the bytes from offset 0x1f1 on.
  std::vector<std::byte> setup_header;
};

// Loads a kernel image. `file` must be a regular file opened for reading (open_image_file); `path` only names
// it in errors. kAuto enters an ELF that has a PVH note by it and everything else by the 64-bit protocol.
//
// `memory` must be fresh: what an image wants zeroed (BSS) is not touched, because new guest RAM is zero and
// a write would only make the host populate it. After an error the memory may hold parts of the image.
//
// Everything in the image is checked before the first byte is placed; an image that is not what it says it
// is, or that does not fit this guest's memory, is kInvalidImage and the error names what is wrong. A kernel
// that cannot be entered in the way asked for is kInvalidArgument.
Result<LoadedKernel> load_kernel(GuestMemory& memory, const UniqueFd& file, std::string_view path,
                                 BootProtocolChoice choice);

}  // namespace mayfly
