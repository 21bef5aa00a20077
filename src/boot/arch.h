// The one door of this room's common sources to what is of the processor's architecture: its map of guest
// memory, and the image formats that only it has. Another architecture has a folder with the same names.
#pragma once

#include "boot/x86_64/bzimage.h"
#include "boot/x86_64/layout.h"

namespace mayfly {

namespace arch = x86_64;

}  // namespace mayfly
