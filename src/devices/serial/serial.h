// A 16550A UART as the guest sees it (National Semiconductor PC16550D data sheet, June 1995), wired as a PC's
// COM port.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/mutex.h"
#include "base/result.h"
#include "devices/bus/bus.h"
#include "devices/bus/interrupt_line.h"

namespace mayfly {

// Counters of the UART and of what it is wired to, each since the start. Thread-safe.
struct SerialMetrics {
  // The host failed to take output or to give input, or typed input began to be lost.
  std::atomic<std::uint64_t> error_count{0};
  std::atomic<std::uint64_t> flush_count{0};         // buffered output handed to the host
  std::atomic<std::uint64_t> missed_read_count{0};   // reads of a receiver that held nothing
  std::atomic<std::uint64_t> missed_write_count{0};  // writes to a register that cannot be written
  std::atomic<std::uint64_t> read_count{0};          // bytes of input that the guest took
  std::atomic<std::uint64_t> lost_input_bytes{0};    // typed, and dropped as the guest did not read
  std::atomic<std::uint64_t> write_count{0};         // bytes that the guest sent
  std::atomic<std::uint64_t> lost_bytes{0};          // of those, bytes that never reached the host
};

// What the UART's line is wired to. Both calls come from vCPU threads with the UART's lock held: they must
// not block, and must not call the UART back.
class SerialBackend {
 public:
  virtual ~SerialBackend() = default;
  // A byte that the guest sent. It is gone from the UART: there is no back-pressure on this side.
  virtual void transmit(std::uint8_t byte) = 0;
  // After input_room() was 0, or receive() took less than it was given: there is room again.
  virtual void input_room_available() = 0;
};

// Everything about a UART that outlives a snapshot. Plain data; Serial16550::create_from() checks it.
struct SerialState {
  static constexpr std::size_t kFifoSize = 16;

  std::uint8_t interrupt_enable = 0;  // IER
  std::uint8_t fifo_control = 0;      // FCR, without the self-clearing reset bits
  std::uint8_t line_control = 0;      // LCR
  std::uint8_t modem_control = 0;     // MCR
  std::uint8_t modem_delta = 0;       // MSR bits 0-3
  std::uint8_t scratch = 0;           // SCR
  std::uint8_t divisor_low = 0x0c;  // DLL; the data sheet leaves it open: 9600 baud, as a PC's firmware does
  std::uint8_t divisor_high = 0;    // DLM
  bool overrun = false;             // LSR bit 1
  bool transmit_empty_pending = false;  // the THRE interrupt's latch
  bool listens_by_polling = false;      // see Serial16550, "until the guest listens"
  std::uint8_t idle_polls = 0;          // LSR reads in a row
  std::uint8_t received_count = 0;      // bytes in the receiver, the oldest first
  std::array<std::uint8_t, kFifoSize> received{};
  bool received_may_return = false;  // the receiver holds bytes from the line only, for the first time
  std::uint8_t returned_count = 0;   // bytes cleared from the receiver, to arrive again
  std::array<std::uint8_t, kFifoSize> returned{};
};

// A 16550A with eight byte-wide registers.
//
// Threads: bus accesses come from any vCPU, receive() and input_room() from the back end's thread; one lock
// guards all. Lock order: this device's lock, then the back end's own, then nothing.
//
// Access sizes: the part has an 8-bit bus, and a PC splits a wider access into byte accesses at ascending
// addresses; so does this device.
//
// Time does not pass on the line: a byte written is sent at once, so the transmitter is always empty, and the
// four character times without traffic that the receive time-out asks for are over as soon as a byte has
// arrived or been read. Baud rate and character format are kept and mean nothing. Breaks, parity and framing
// errors do not occur.
//
// Interrupts: the part holds its INTR pin high as long as an enabled source is pending. A PC's interrupt
// controller sees only the pin's rising edges, and remembers one while the handler runs. An edge is made
//  - when the pin goes from low to high, for whatever reason;
//  - when the guest reads a byte and leaves some below the trigger level: on the real part the read ends
//    the time-out and four character times later it is raised again;
//  - when a byte is written with the THRE interrupt enabled: on the real part the pin goes low until it is
//    sent;
//  - when input arrives while the pin is high already. The real part makes no edge then, and a driver that
//    gives up in the middle of endless input (Linux does after 512 rounds) would never be called again.
// Not made is the edge of a byte written right after another edge, with no other access in between: a handler
// that the first one starts has not looked at the part yet, so it finds what the second one would tell. So
// whenever the pin is high, the guest has an edge that it has not answered, or has run a handler since the
// last one and left a source pending that it had been shown.
//
// Input waits with the sender until the guest listens: until it has enabled the received-data interrupt, or
// read LSR kPollsThatListen times with no other access in between; a write to IER ends the latter. Nor is
// input lost to a driver that clears the receiver while it sets the part up: bytes so cleared are delivered
// once more, which a guest cannot tell from a sender that sends just then. In loopback mode the line is cut
// and its input waits.
class Serial16550 final : public BusDevice {
 public:
  static constexpr std::uint64_t kRegisterCount = 8;
  static constexpr std::uint8_t kPollsThatListen = 16;

  // All are borrowed and outlive the device. Construction touches none of them.
  Serial16550(InterruptLine& line, SerialBackend& backend, SerialMetrics& metrics);

  void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) override;
  void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) override;

  // How many bytes receive() would take now. Where it is 0, the back end is told when that changes.
  std::size_t input_room();
  // Puts bytes from the line into the receiver; how many were taken. Where it was not all, the back end is
  // told when there is room again.
  std::size_t receive(std::span<const std::uint8_t> bytes);

  // A consistent copy of the state. Call it while no vCPU runs.
  SerialState save();
  // Replaces the state, with one edge where an interrupt is pending in it. Errors: kOutOfRange for a state
  // that no guest can bring about; the device is unchanged then.
  Result<void> restore(const SerialState& state);

 private:
  std::uint8_t read_register(std::uint64_t offset) MAYFLY_REQUIRES(lock_);
  void write_register(std::uint64_t offset, std::uint8_t value) MAYFLY_REQUIRES(lock_);
  std::uint8_t read_received() MAYFLY_REQUIRES(lock_);
  std::uint8_t read_interrupt_id() MAYFLY_REQUIRES(lock_);
  std::uint8_t read_line_status() MAYFLY_REQUIRES(lock_);
  void write_transmit(std::uint8_t value) MAYFLY_REQUIRES(lock_);
  void write_interrupt_enable(std::uint8_t value) MAYFLY_REQUIRES(lock_);
  void write_fifo_control(std::uint8_t value) MAYFLY_REQUIRES(lock_);
  void write_modem_control(std::uint8_t value) MAYFLY_REQUIRES(lock_);

  void put_received(std::uint8_t byte) MAYFLY_REQUIRES(lock_);
  void clear_received() MAYFLY_REQUIRES(lock_);
  void deliver_returned() MAYFLY_REQUIRES(lock_);
  std::uint8_t interrupt_id() const MAYFLY_REQUIRES(lock_);
  std::uint8_t modem_inputs() const MAYFLY_REQUIRES(lock_);
  bool fifo_enabled() const MAYFLY_REQUIRES(lock_);
  bool loopback() const MAYFLY_REQUIRES(lock_);
  bool listening() const MAYFLY_REQUIRES(lock_);
  std::size_t capacity() const MAYFLY_REQUIRES(lock_);
  std::size_t trigger_level() const MAYFLY_REQUIRES(lock_);
  std::size_t room() const MAYFLY_REQUIRES(lock_);
  // Makes the edge that the change just made asks for; `arrival` where one is due though the pin was high
  // already.
  void settle(bool arrival = false) MAYFLY_REQUIRES(lock_);
  // Tells a back end that waits for room if there is some.
  void report_room() MAYFLY_REQUIRES(lock_);

  InterruptLine& line_;
  SerialBackend& backend_;
  SerialMetrics& metrics_;
  Mutex lock_;  // the back end's own lock is taken under it
  SerialState state_ MAYFLY_GUARDED_BY(lock_);
  bool pin_was_high_ MAYFLY_GUARDED_BY(lock_) = false;
  // The guest has done nothing but write bytes since the last edge.
  bool edge_is_news_ MAYFLY_GUARDED_BY(lock_) = false;
  bool input_waits_ MAYFLY_GUARDED_BY(lock_) = false;  // the back end wants to hear of room
};

}  // namespace mayfly
