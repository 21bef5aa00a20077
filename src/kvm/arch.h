// The one door to what this room has of the processor's architecture, for common sources of other rooms: what
// a configuration can change of the processor. Another architecture has a folder with the same names.
#pragma once

#include "kvm/x86_64/cpu_template.h"

namespace mayfly {

namespace arch = x86_64;

}  // namespace mayfly
