// Why a machine could not be made: what its configuration says or names, or what the host refused.
#pragma once

#include <cstdint>
#include <utility>

#include "base/result.h"

namespace mayfly {

struct BuildError {
  enum class Fault : std::uint8_t { kConfiguration, kHost };

  Error error;
  Fault fault = Fault::kHost;

  // NOLINTNEXTLINE(google-explicit-constructor): an error is the host's unless the step says otherwise
  BuildError(Error from_host) : error(std::move(from_host)) {}
  static BuildError of_configuration(Error error) {
    BuildError result(std::move(error));
    result.fault = Fault::kConfiguration;
    return result;
  }
};

// Of what a CPU template asks for.
inline BuildError of_cpu_config(const Error& error) {
  return BuildError::of_configuration(error.within("cpu-config"));
}

}  // namespace mayfly
