// The ACPI registers by which a hardware-reduced guest ends itself.
//
// Three registers of one byte, side by side:
//
//   offset  register       ACPI 6.5     read                 written
//   0       sleep control  4.8.3.7.1    SLP_TYP as written;  SLP_TYP is kept; with SLP_EN set the
//                                       all else 0           machine goes to that sleep state
//   1       sleep status   4.8.3.7.2    WAK_STS; all else 0  1 to WAK_STS clears it
//   2       reset          4.8.3.6      0                    kResetValue resets; all else is ignored
//
// The only sleep state is S5 (kSleepTypeOff). A guest that asks for another one, which \_Sx never offered it,
// finds that it has slept and woken at once: WAK_STS is set, so that the loop in which an operating system
// waits for it ends. Reserved bits read as 0 and are ignored when written. An access of any other size than a
// byte reaches no register: it reads as all ones and a write of it is dropped; both are counted as missed.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "devices/bus/bus.h"
#include "devices/power/power_line.h"

namespace mayfly {

struct PowerState {
  std::uint8_t sleep_type = 0;  // SLP_TYP as last written, 0..7
  bool wake_status = false;     // WAK_STS

  friend bool operator==(const PowerState&, const PowerState&) = default;
};

// What the guest did to the registers since the device was made.
struct PowerCounters {
  std::uint64_t read_count = 0;
  std::uint64_t write_count = 0;
  std::uint64_t missed_read_count = 0;   // not a byte wide
  std::uint64_t missed_write_count = 0;  // not a byte wide
  std::uint64_t error_count = 0;         // a sleep state that there is not, a reset value that is none
  std::uint64_t reset_count = 0;
  std::uint64_t power_off_count = 0;

  friend bool operator==(const PowerCounters&, const PowerCounters&) = default;
};

// Thread-safe without a lock: each register is one atomic value of its own.
class PowerDevice final : public BusDevice {
 public:
  static constexpr std::uint64_t kSleepControl = 0;
  static constexpr std::uint64_t kSleepStatus = 1;
  static constexpr std::uint64_t kReset = 2;
  static constexpr std::uint64_t kSize = 3;  // ports

  static constexpr std::uint8_t kSleepEnable = 1U << 5;  // SLP_EN: write-only
  static constexpr std::uint8_t kSleepTypeShift = 2;     // SLP_TYPx: bits 2..4
  static constexpr std::uint8_t kSleepTypeMask = 7U << kSleepTypeShift;
  static constexpr std::uint8_t kWakeStatus = 1U << 7;  // WAK_STS
  static constexpr std::uint8_t kSleepTypeOff = 5;      // what \_S5 says
  static constexpr std::uint8_t kResetValue = 1;        // what the FADT's RESET_VALUE says

  explicit PowerDevice(PowerLine& line) : line_(line) {}  // borrowed; outlives the device

  void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) override;
  void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) override;

  PowerState state() const;
  // Only while no vCPU runs. Bits that SLP_TYP does not have are dropped.
  void set_state(const PowerState& state);

  PowerCounters counters() const;

 private:
  using Counter = std::atomic<std::uint64_t>;

  void write_sleep_control(std::uint8_t value);

  PowerLine& line_;
  std::atomic<std::uint8_t> sleep_type_{0};
  std::atomic<bool> wake_status_{false};
  Counter read_count_{0}, write_count_{0}, missed_read_count_{0}, missed_write_count_{0}, error_count_{0},
      reset_count_{0}, power_off_count_{0};
};

}  // namespace mayfly
