#include "devices/power/power.h"

#include <algorithm>

namespace mayfly {
namespace {

void count(std::atomic<std::uint64_t>& counter) {
  counter.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

void PowerDevice::bus_read(std::uint64_t offset, std::span<std::uint8_t> data) {
  if (data.size() != 1 || offset >= kSize) {
    std::fill(data.begin(), data.end(), std::uint8_t{0xff});
    count(missed_read_count_);
    return;
  }
  count(read_count_);
  std::uint8_t value = 0;
  if (offset == kSleepControl) {
    value = static_cast<std::uint8_t>(sleep_type_.load() << kSleepTypeShift);
  } else if (offset == kSleepStatus) {
    value = wake_status_.load() ? kWakeStatus : std::uint8_t{0};
  }
  data[0] = value;
}

void PowerDevice::bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) {
  if (data.size() != 1 || offset >= kSize) {
    count(missed_write_count_);
    return;
  }
  count(write_count_);
  const std::uint8_t value = data[0];
  if (offset == kSleepControl) {
    write_sleep_control(value);
  } else if (offset == kSleepStatus) {
    if ((value & kWakeStatus) != 0) {
      wake_status_.store(false);
    }
  } else if (value == kResetValue) {
    count(reset_count_);
    line_.request(PowerEvent::kReset);
  } else {
    count(error_count_);
  }
}

void PowerDevice::write_sleep_control(std::uint8_t value) {
  const auto type = static_cast<std::uint8_t>((value & kSleepTypeMask) >> kSleepTypeShift);
  sleep_type_.store(type);
  if ((value & kSleepEnable) == 0) {
    return;
  }
  if (type == kSleepTypeOff) {
    count(power_off_count_);
    line_.request(PowerEvent::kPowerOff);
    return;
  }
  count(error_count_);
  wake_status_.store(true);
}

PowerState PowerDevice::state() const {
  return {.sleep_type = sleep_type_.load(), .wake_status = wake_status_.load()};
}

void PowerDevice::set_state(const PowerState& state) {
  sleep_type_.store(state.sleep_type & (kSleepTypeMask >> kSleepTypeShift));
  wake_status_.store(state.wake_status);
}

PowerCounters PowerDevice::counters() const {
  return {.read_count = read_count_.load(),
          .write_count = write_count_.load(),
          .missed_read_count = missed_read_count_.load(),
          .missed_write_count = missed_write_count_.load(),
          .error_count = error_count_.load(),
          .reset_count = reset_count_.load(),
          .power_off_count = power_off_count_.load()};
}

}  // namespace mayfly
