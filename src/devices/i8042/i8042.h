// The reset line of a keyboard controller, with no keyboard behind it: what a guest booted with reboot=k
// needs.
//
// Two registers of one byte: data (port 0x60) and, read, status or, written, command (port 0x64). ACPI tells
// a guest that there is no 8042 (boot/x86_64/acpi), so only two kinds of access matter, and the status
// register, which never changes, answers both:
//
//   - A guest that resets waits until bit 1 (IBF, the controller is busy) is clear, then writes a command
//     that pulses output line 0: IBF is always clear.
//   - A guest that ignores ACPI, or has none, probes for a keyboard. Answering as a controller would lead
//     it on to probe the keyboard and the mouse port (the better part of a second in Linux); status 0 would
//     have it wait out each command's answer (10,000 reads of the status). Bit 0 (OBF, there is data to
//     read) is always set, so Linux's first step, emptying the buffer, gives up after 16 bytes: "No
//     controller found".
//
// Commands: 0xf0..0xff pulse the output lines whose bits among 0..3 are clear; line 0 is the reset line, so
// any even one of them (0xfe, as everybody writes it) is PowerEvent::kReset. Every other command, and every
// byte written to the data port, is ignored. The data port reads as all ones. An access of any other size
// than a byte reaches no register: it reads as all ones and a write of it is dropped; both are counted as
// missed.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "devices/bus/bus.h"
#include "devices/power/power_line.h"

namespace mayfly {

// What the guest did to the registers since the device was made; named as the metrics name them.
struct I8042Counters {
  std::uint64_t read_count = 0;
  std::uint64_t write_count = 0;
  std::uint64_t missed_read_count = 0;   // not a byte wide
  std::uint64_t missed_write_count = 0;  // not a byte wide
  std::uint64_t error_count = 0;         // commands and data that are ignored
  std::uint64_t reset_count = 0;

  friend bool operator==(const I8042Counters&, const I8042Counters&) = default;
};

// Thread-safe. Holds no state that the guest could see, so there is nothing of it in a snapshot. The two
// ports are not neighbours: data_port() and command_port() are what goes on the bus, each one port wide; both
// are part of the device.
class I8042 {
 public:
  static constexpr std::uint8_t kStatusOutputFull = 1U << 0;  // OBF
  static constexpr std::uint8_t kStatus = kStatusOutputFull;  // always
  static constexpr std::uint8_t kCommandPulse = 0xf0;         // low four bits: 0 pulses the line
  static constexpr std::uint8_t kPulseResetLine = 1U << 0;

  explicit I8042(PowerLine& line) : line_(line) {}  // borrowed; outlives the device
  I8042(const I8042&) = delete;
  I8042& operator=(const I8042&) = delete;
  ~I8042() = default;

  BusDevice& data_port() { return data_port_; }
  BusDevice& command_port() { return command_port_; }

  I8042Counters counters() const;

 private:
  using Counter = std::atomic<std::uint64_t>;

  class Port final : public BusDevice {
   public:
    Port(I8042& device, bool is_command) : device_(device), is_command_(is_command) {}
    void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) override;
    void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) override;

   private:
    I8042& device_;
    const bool is_command_;
  };

  PowerLine& line_;
  Port data_port_{*this, false};
  Port command_port_{*this, true};
  Counter read_count_{0}, write_count_{0}, missed_read_count_{0}, missed_write_count_{0}, error_count_{0},
      reset_count_{0};
};

}  // namespace mayfly
