// Resource limits (setrlimit(2)).
#pragma once

#include <sys/resource.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "options.h"

namespace mayfly::jail {

struct Limit {
  __rlimit_resource resource;
  const char* name;  // as --resource-limit spells it, or as the kernel does
  std::uint64_t value;
};

// no-file always; fsize where it is given; no core files, which would carry the guest's memory to the disk.
std::vector<Limit> jail_limits(const Options& options);

// Whether set_limit() may, which this process shows by raising its own limit; it never lowers it.
Result<void> check_limit(const Limit& limit);

// Sets both the soft and the hard limit of this process.
Result<void> set_limit(const Limit& limit);

}  // namespace mayfly::jail
