#include "devices/power/power_line.h"

namespace mayfly {

void PowerLine::request(PowerEvent event) noexcept {
  std::uint8_t expected = kNothing;
  if (requested_.compare_exchange_strong(expected, static_cast<std::uint8_t>(event))) {
    sink_.power_event(event);
  }
}

std::optional<PowerEvent> PowerLine::requested() const noexcept {
  const std::uint8_t value = requested_.load();
  return value == kNothing ? std::nullopt : std::optional<PowerEvent>(static_cast<PowerEvent>(value));
}

}  // namespace mayfly
