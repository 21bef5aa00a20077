// Which system call filters the threads of this process get.
#pragma once

#include <functional>
#include <optional>

#include "base/result.h"
#include "mayfly/failure.h"
#include "mayfly/options.h"
#include "seccomp/filters.h"

namespace mayfly {

// Nothing where the flags want none. kBadArguments where the file that they name cannot be used.
OrFailure<std::optional<Filters>> choose_filters(const Options& options);

// What confines the thread that calls it, by one of `filters`, which is borrowed; empty where there are none.
std::function<Result<void>()> confinement(const std::optional<Filters>& filters, FilteredThread thread);

}  // namespace mayfly
