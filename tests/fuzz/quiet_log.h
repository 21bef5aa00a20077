// For targets whose devices log what a hostile guest does: nothing of it is written.
#pragma once

#include "base/log.h"

namespace mayfly::testing {

inline void quiet_log() {
  [[maybe_unused]] static const bool quiet =
      configure_log({.path = {}, .level = LogLevel::kOff, .show_level = {}, .show_origin = {}, .module = {}})
          .has_value();
}

}  // namespace mayfly::testing
