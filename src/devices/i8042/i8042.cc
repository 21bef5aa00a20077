#include "devices/i8042/i8042.h"

#include <algorithm>

namespace mayfly {
namespace {

void count(std::atomic<std::uint64_t>& counter) {
  counter.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

void I8042::Port::bus_read(std::uint64_t offset, std::span<std::uint8_t> data) {
  std::fill(data.begin(), data.end(), std::uint8_t{0xff});
  if (data.size() != 1 || offset != 0) {
    count(device_.missed_read_count_);
    return;
  }
  count(device_.read_count_);
  if (is_command_) {
    data[0] = kStatus;
  }
}

void I8042::Port::bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) {
  if (data.size() != 1 || offset != 0) {
    count(device_.missed_write_count_);
    return;
  }
  count(device_.write_count_);
  const std::uint8_t command = data[0];
  const bool pulses = is_command_ && (command & kCommandPulse) == kCommandPulse;
  if (!pulses) {
    count(device_.error_count_);
  } else if ((command & kPulseResetLine) == 0) {
    count(device_.reset_count_);
    device_.line_.request(PowerEvent::kReset);
  }
}

I8042Counters I8042::counters() const {
  return {.read_count = read_count_.load(),
          .write_count = write_count_.load(),
          .missed_read_count = missed_read_count_.load(),
          .missed_write_count = missed_write_count_.load(),
          .error_count = error_count_.load(),
          .reset_count = reset_count_.load()};
}

}  // namespace mayfly
