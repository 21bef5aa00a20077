// How the guest's wish to end reaches the monitor.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

namespace mayfly {

enum class PowerEvent : std::uint8_t {
  kReset,     // reboot: the reset register, or the keyboard controller's reset line
  kPowerOff,  // the soft-off sleep state, S5
};

// Whoever ends the machine. Implemented outside the devices.
class PowerSink {
 public:
  virtual ~PowerSink() = default;
  // Called on the vCPU thread whose write asked for it, with no lock of a device held. Must not wait for that
  // thread.
  virtual void power_event(PowerEvent event) noexcept = 0;
};

// The one line on which every register that can end the guest pulls. The first request wins and is the only
// one the sink hears of, whichever device, register and vCPU it came from, and however many there are at
// once. Thread-safe. Not part of a snapshot: a machine that is about to end is not saved.
class PowerLine {
 public:
  explicit PowerLine(PowerSink& sink) : sink_(sink) {}  // borrowed; outlives the line
  PowerLine(const PowerLine&) = delete;
  PowerLine& operator=(const PowerLine&) = delete;
  ~PowerLine() = default;

  void request(PowerEvent event) noexcept;

  // What was requested first, if anything was: a vCPU thread that asks after each exit does not run the guest
  // any further once it has asked to end.
  std::optional<PowerEvent> requested() const noexcept;

 private:
  static constexpr std::uint8_t kNothing = 0xff;

  PowerSink& sink_;
  std::atomic<std::uint8_t> requested_{kNothing};
};

}  // namespace mayfly
