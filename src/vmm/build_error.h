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
  // Of what is loaded: a file that is not what it should be is the configuration's fault; one that the host
  // fails to read is not.
  static BuildError of_loading(Error error) {
    const ErrorCode code = error.code();
    const bool host = code == ErrorCode::kIo || code == ErrorCode::kInternal || code == ErrorCode::kExhausted;
    return host ? BuildError(std::move(error)) : of_configuration(std::move(error));
  }
};

// Of what a CPU template asks for.
inline BuildError of_cpu_config(const Error& error) {
  return BuildError::of_configuration(error.within("cpu-config"));
}

}  // namespace mayfly
