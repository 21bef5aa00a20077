// Everything that is handed to a kernel at its entry.
#pragma once

#include <optional>

#include "boot/command_line.h"
#include "boot/kernel_image.h"
#include "memory/guest_address.h"

namespace mayfly {

struct BootPlan {
  LoadedKernel kernel;
  std::optional<GuestRange> initrd;  // as load_initrd() placed it
  CommandLine command_line;
  std::optional<GuestAddress> rsdp;  // the ACPI root pointer; none: a guest without ACPI
};

}  // namespace mayfly
