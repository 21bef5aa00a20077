// What the fuzz targets of the kernel loaders have in common: the input is the file.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "boot/image_file.h"
#include "boot/kernel_image.h"
#include "boot/x86_64/layout.h"
#include "boot/x86_64/prepare_boot.h"
#include "support/image_builder.h"

namespace mayfly::testing {

// One unnamed file for all runs, with new content.
inline const UniqueFd& refill_file(const std::uint8_t* data, std::size_t size) {
  static const UniqueFd file = make_file({});
  MAYFLY_CHECK(::ftruncate(file.get(), 0) == 0, "a memfd can be emptied");
  MAYFLY_CHECK(::pwrite(file.get(), data, size, 0) == static_cast<ssize_t>(size), "a memfd takes it whole");
  return file;
}

// Loads `data` as a kernel in every way and holds whatever is accepted to what the header promises.
inline void fuzz_kernel_loader(const std::uint8_t* data, std::size_t size) {
  static GuestMemory memory = make_memory(32 * 1024 * 1024);
  const UniqueFd& file = refill_file(data, size);
  for (const auto choice :
       {BootProtocolChoice::kAuto, BootProtocolChoice::kPvh, BootProtocolChoice::kLinux64}) {
    auto kernel = load_kernel(memory, file, "/fuzz", choice);
    if (!kernel) {
      MAYFLY_CHECK(!kernel.error().message().empty(), "an error says what is wrong");
      continue;
    }
    MAYFLY_CHECK(memory.contains(kernel->extent), "a kernel lies in memory");
    MAYFLY_CHECK(kernel->extent.base() >= GuestAddress(x86_64::layout::kHighMemoryStart),
                 "a kernel lies above the boot data");
    MAYFLY_CHECK(kernel->extent.contains(kernel->entry.entry), "a kernel is entered where it lies");
    MAYFLY_CHECK(choice == BootProtocolChoice::kAuto ||
                     (choice == BootProtocolChoice::kPvh) == (kernel->entry.protocol == BootProtocol::kPvh),
                 "a protocol that was asked for is used");
    const BootPlan plan{std::move(*kernel), std::nullopt, CommandLine(), std::nullopt};
    MAYFLY_CHECK(x86_64::prepare_boot(memory, plan), "what was loaded can be started");
  }
}

}  // namespace mayfly::testing
