// The one door to what this room has of the processor's architecture, for common sources of other rooms: what
// a configuration can change of the processor, and what a snapshot keeps of it. Another architecture has a
// folder with the same names.
#pragma once

#include "kvm/x86_64/cpu_template.h"
#include "kvm/x86_64/saved_state.h"

namespace mayfly {

namespace arch = x86_64;

}  // namespace mayfly
