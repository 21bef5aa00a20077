// The policy in resources/seccomp, compiled when the program was built.
#pragma once

#include "base/result.h"
#include "seccomp/filters.h"

namespace mayfly {

// Errors: none, unless the build went wrong.
Result<Filters> built_in_filters();

}  // namespace mayfly
