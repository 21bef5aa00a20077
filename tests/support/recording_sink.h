// Who ends the machine, in a test of a device that asks for it.
#pragma once

#include <vector>

#include "devices/power/power_line.h"

namespace mayfly::testing {

class RecordingSink final : public PowerSink {
 public:
  void power_event(PowerEvent event) noexcept override { events.push_back(event); }
  std::vector<PowerEvent> events;
};

}  // namespace mayfly::testing
