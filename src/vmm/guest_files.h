// The files that a boot source names, open.
#pragma once

#include <optional>

#include "base/result.h"
#include "base/unique_fd.h"
#include "vmm/config.h"

namespace mayfly {

// Opened for reading before anything else is made: a wrong path is the commonest error and costs nothing to
// find.
struct GuestFiles {
  UniqueFd kernel;
  std::optional<UniqueFd> initrd;

  // Errors name the file and what it was to be.
  static Result<GuestFiles> open(const BootSourceConfig& config);
};

}  // namespace mayfly
