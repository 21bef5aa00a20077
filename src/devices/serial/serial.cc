#include "devices/serial/serial.h"

#include <algorithm>

namespace mayfly {
namespace {

// Register offsets (data sheet, table II). With LCR's divisor latch access bit set, 0 and 1 are DLL and DLM.
constexpr std::uint64_t kData = 0;  // RBR on reads, THR on writes
constexpr std::uint64_t kInterruptEnable = 1;
constexpr std::uint64_t kInterruptId = 2;  // IIR on reads, FCR on writes
constexpr std::uint64_t kLineControl = 3;
constexpr std::uint64_t kModemControl = 4;
constexpr std::uint64_t kLineStatus = 5;
constexpr std::uint64_t kModemStatus = 6;

constexpr std::uint8_t kIerReceived = 0x01;
constexpr std::uint8_t kIerTransmitEmpty = 0x02;
constexpr std::uint8_t kIerLineStatus = 0x04;
constexpr std::uint8_t kIerModemStatus = 0x08;
constexpr std::uint8_t kIerBits = 0x0f;

// IIR, table IV: the lower four bits name the source of the highest priority.
constexpr std::uint8_t kIirNone = 0x01;
constexpr std::uint8_t kIirLineStatus = 0x06;
constexpr std::uint8_t kIirReceived = 0x04;
constexpr std::uint8_t kIirTimeout = 0x0c;
constexpr std::uint8_t kIirTransmitEmpty = 0x02;
constexpr std::uint8_t kIirModemStatus = 0x00;
constexpr std::uint8_t kIirFifosEnabled = 0xc0;

constexpr std::uint8_t kFcrEnable = 0x01;
constexpr std::uint8_t kFcrResetReceiver = 0x02;
constexpr std::uint8_t kFcrKept = 0xc9;  // enable, DMA mode, trigger level

constexpr std::uint8_t kLcrDivisorAccess = 0x80;

constexpr std::uint8_t kMcrDtr = 0x01;
constexpr std::uint8_t kMcrRts = 0x02;
constexpr std::uint8_t kMcrOut1 = 0x04;
constexpr std::uint8_t kMcrOut2 = 0x08;
constexpr std::uint8_t kMcrLoop = 0x10;
constexpr std::uint8_t kMcrBits = 0x1f;

constexpr std::uint8_t kLsrDataReady = 0x01;
constexpr std::uint8_t kLsrOverrun = 0x02;
constexpr std::uint8_t kLsrTransmitterEmpty = 0x60;  // THRE and TEMT

constexpr std::uint8_t kMsrDeltaCts = 0x01;
constexpr std::uint8_t kMsrDeltaDsr = 0x02;
constexpr std::uint8_t kMsrTrailingRi = 0x04;
constexpr std::uint8_t kMsrDeltaDcd = 0x08;
constexpr std::uint8_t kMsrDeltas = 0x0f;
constexpr std::uint8_t kMsrCts = 0x10;
constexpr std::uint8_t kMsrDsr = 0x20;
constexpr std::uint8_t kMsrRi = 0x40;
constexpr std::uint8_t kMsrDcd = 0x80;

constexpr std::uint8_t bits(unsigned value) {
  return static_cast<std::uint8_t>(value);
}

void count(std::atomic<std::uint64_t>& counter) {
  counter.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

Serial16550::Serial16550(InterruptLine& line, SerialBackend& backend, SerialMetrics& metrics)
    : line_(line), backend_(backend), metrics_(metrics) {}

void Serial16550::bus_read(std::uint64_t offset, std::span<std::uint8_t> data) {
  const MutexLock guard(lock_);
  for (std::uint8_t& byte : data) {
    byte = read_register(offset++);
  }
}

void Serial16550::bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) {
  const MutexLock guard(lock_);
  for (const std::uint8_t byte : data) {
    write_register(offset++, byte);
  }
}

std::size_t Serial16550::input_room() {
  const MutexLock guard(lock_);
  deliver_returned();
  const std::size_t now = room();
  input_waits_ = now == 0;
  return now;
}

std::size_t Serial16550::receive(std::span<const std::uint8_t> bytes) {
  const MutexLock guard(lock_);
  deliver_returned();
  const std::size_t taken = std::min(bytes.size(), room());
  if (taken > 0) {
    state_.received_may_return = state_.received_count == 0 || state_.received_may_return;
    for (const std::uint8_t byte : bytes.first(taken)) {
      put_received(byte);
    }
    settle((state_.interrupt_enable & kIerReceived) != 0);
  }
  if (!bytes.empty()) {
    input_waits_ = taken < bytes.size();
  }
  return taken;
}

SerialState Serial16550::save() {
  const MutexLock guard(lock_);
  return state_;
}

Result<void> Serial16550::restore(const SerialState& state) {
  const bool fifo = (state.fifo_control & kFcrEnable) != 0;
  const bool reachable =
      (state.interrupt_enable & ~kIerBits) == 0 && (state.fifo_control & ~kFcrKept) == 0 &&
      (fifo || state.fifo_control == 0) && (state.modem_control & ~kMcrBits) == 0 &&
      (state.modem_delta & ~kMsrDeltas) == 0 && state.idle_polls <= kPollsThatListen &&
      (!state.transmit_empty_pending || (state.interrupt_enable & kIerTransmitEmpty) != 0) &&
      state.received_count <= (fifo ? SerialState::kFifoSize : 1) &&
      state.returned_count <= SerialState::kFifoSize;
  if (!reachable) {
    return fail(ErrorCode::kOutOfRange, "serial port state: no sequence of accesses leads to it");
  }
  const MutexLock guard(lock_);
  state_ = state;
  pin_was_high_ = false;
  edge_is_news_ = false;
  input_waits_ = true;
  settle();
  report_room();
  return {};
}

std::uint8_t Serial16550::read_register(std::uint64_t offset) {
  edge_is_news_ = false;
  if (offset != kLineStatus) {
    state_.idle_polls = 0;
  }
  const bool divisor = (state_.line_control & kLcrDivisorAccess) != 0;
  switch (offset) {
    case kData:
      return divisor ? state_.divisor_low : read_received();
    case kInterruptEnable:
      return divisor ? state_.divisor_high : state_.interrupt_enable;
    case kInterruptId:
      return read_interrupt_id();
    case kLineControl:
      return state_.line_control;
    case kModemControl:
      return state_.modem_control;
    case kLineStatus:
      return read_line_status();
    case kModemStatus: {
      const std::uint8_t value = bits(modem_inputs() | state_.modem_delta);
      state_.modem_delta = 0;
      settle();
      return value;
    }
    default:
      return state_.scratch;
  }
}

void Serial16550::write_register(std::uint64_t offset, std::uint8_t value) {
  state_.idle_polls = 0;
  const bool divisor = (state_.line_control & kLcrDivisorAccess) != 0;
  edge_is_news_ = edge_is_news_ && offset == kData && !divisor;
  switch (offset) {
    case kData:
      if (divisor) {
        state_.divisor_low = value;
      } else {
        write_transmit(value);
      }
      break;
    case kInterruptEnable:
      if (divisor) {
        state_.divisor_high = value;
      } else {
        write_interrupt_enable(value);
      }
      break;
    case kInterruptId:
      write_fifo_control(value);
      break;
    case kLineControl:
      state_.line_control = value;
      break;
    case kModemControl:
      write_modem_control(value);
      break;
    case kLineStatus:  // "intended for read operations only" (section 8.3)
    case kModemStatus:
      count(metrics_.missed_write_count);
      break;
    default:
      state_.scratch = value;
      break;
  }
}

std::uint8_t Serial16550::read_received() {
  if (state_.received_count == 0) {
    count(metrics_.missed_read_count);
    return 0;
  }
  const std::uint8_t byte = state_.received[0];
  std::copy(state_.received.begin() + 1, state_.received.end(), state_.received.begin());
  --state_.received_count;
  if (!loopback()) {
    count(metrics_.read_count);
  }
  const bool timeout_again = state_.received_count > 0 && state_.received_count < trigger_level() &&
                             (state_.interrupt_enable & kIerReceived) != 0;
  settle(timeout_again);
  report_room();
  return byte;
}

std::uint8_t Serial16550::read_interrupt_id() {
  const std::uint8_t id = interrupt_id();
  if (id == kIirTransmitEmpty) {
    // Table IV: reading IIR resets this interrupt where it is the one indicated, and no other.
    state_.transmit_empty_pending = false;
    settle();
  }
  return bits(id | (fifo_enabled() ? kIirFifosEnabled : 0U));
}

std::uint8_t Serial16550::read_line_status() {
  const std::uint8_t value = bits(kLsrTransmitterEmpty | (state_.received_count > 0 ? kLsrDataReady : 0U) |
                                  (state_.overrun ? kLsrOverrun : 0U));
  state_.overrun = false;
  settle();
  if (state_.idle_polls < kPollsThatListen && ++state_.idle_polls == kPollsThatListen) {
    state_.listens_by_polling = true;
    report_room();
  }
  return value;
}

void Serial16550::write_transmit(std::uint8_t value) {
  if (loopback()) {
    state_.received_may_return = false;
    put_received(value);
  } else {
    count(metrics_.write_count);
    backend_.transmit(value);
  }
  state_.transmit_empty_pending = (state_.interrupt_enable & kIerTransmitEmpty) != 0;
  settle(state_.transmit_empty_pending && !edge_is_news_);
}

void Serial16550::write_interrupt_enable(std::uint8_t value) {
  const std::uint8_t before = state_.interrupt_enable;
  state_.interrupt_enable = bits(value & kIerBits);
  state_.listens_by_polling = false;
  if ((value & kIerTransmitEmpty) == 0) {
    state_.transmit_empty_pending = false;
  } else if ((before & kIerTransmitEmpty) == 0) {
    // The holding register is always empty: enabling its interrupt raises it.
    state_.transmit_empty_pending = true;
  }
  settle();
  report_room();
}

void Serial16550::write_fifo_control(std::uint8_t value) {
  // Section 8.4: bit 0 must be 1 for the others to be taken; a change of mode empties the FIFOs.
  const bool enable = (value & kFcrEnable) != 0;
  if (enable != fifo_enabled() || (enable && (value & kFcrResetReceiver) != 0)) {
    clear_received();
  }
  state_.fifo_control = enable ? bits(value & kFcrKept) : std::uint8_t{0};
  settle();
  report_room();
}

void Serial16550::write_modem_control(std::uint8_t value) {
  const std::uint8_t before = modem_inputs();
  state_.modem_control = bits(value & kMcrBits);
  const std::uint8_t after = modem_inputs();
  const unsigned changed = before ^ after;
  state_.modem_delta |=
      bits(((changed & kMsrCts) != 0 ? kMsrDeltaCts : 0U) | ((changed & kMsrDsr) != 0 ? kMsrDeltaDsr : 0U) |
           ((before & ~after & kMsrRi) != 0 ? kMsrTrailingRi : 0U) |
           ((changed & kMsrDcd) != 0 ? kMsrDeltaDcd : 0U));
  settle();
  report_room();
}

void Serial16550::put_received(std::uint8_t byte) {
  if (state_.received_count < capacity()) {
    state_.received[state_.received_count++] = byte;
    return;
  }
  // Section 8.3: without FIFOs the new character destroys the old one; with them it is lost in the shift
  // register.
  state_.overrun = true;
  if (!fifo_enabled()) {
    state_.received[0] = byte;
  }
}

void Serial16550::clear_received() {
  if (state_.received_may_return && state_.returned_count == 0 && state_.received_count > 0) {
    state_.returned = state_.received;
    state_.returned_count = state_.received_count;
    input_waits_ = true;
  }
  state_.received_count = 0;
  state_.received_may_return = false;
}

void Serial16550::deliver_returned() {
  if (state_.returned_count == 0 || !listening() || loopback() || state_.received_count > 0) {
    return;
  }
  const std::size_t taken = std::min<std::size_t>(state_.returned_count, capacity());
  for (std::size_t i = 0; i < taken; ++i) {
    put_received(state_.returned[i]);
  }
  std::copy(state_.returned.begin() + static_cast<std::ptrdiff_t>(taken), state_.returned.end(),
            state_.returned.begin());
  state_.returned_count = bits(state_.returned_count - static_cast<unsigned>(taken));
  settle((state_.interrupt_enable & kIerReceived) != 0);
}

std::uint8_t Serial16550::interrupt_id() const {
  const std::uint8_t enabled = state_.interrupt_enable;
  if ((enabled & kIerLineStatus) != 0 && state_.overrun) {
    return kIirLineStatus;
  }
  if ((enabled & kIerReceived) != 0 && state_.received_count > 0) {
    return state_.received_count >= trigger_level() ? kIirReceived : kIirTimeout;
  }
  if ((enabled & kIerTransmitEmpty) != 0 && state_.transmit_empty_pending) {
    return kIirTransmitEmpty;
  }
  if ((enabled & kIerModemStatus) != 0 && state_.modem_delta != 0) {
    return kIirModemStatus;
  }
  return kIirNone;
}

std::uint8_t Serial16550::modem_inputs() const {
  const std::uint8_t control = state_.modem_control;
  if (!loopback()) {
    return kMsrCts | kMsrDsr | kMsrDcd;  // a peer that is there and ready
  }
  // Section 8.7: in loopback the four outputs are connected to the four inputs.
  return bits(((control & kMcrRts) != 0 ? kMsrCts : 0U) | ((control & kMcrDtr) != 0 ? kMsrDsr : 0U) |
              ((control & kMcrOut1) != 0 ? kMsrRi : 0U) | ((control & kMcrOut2) != 0 ? kMsrDcd : 0U));
}

bool Serial16550::fifo_enabled() const {
  return (state_.fifo_control & kFcrEnable) != 0;
}

bool Serial16550::loopback() const {
  return (state_.modem_control & kMcrLoop) != 0;
}

bool Serial16550::listening() const {
  return (state_.interrupt_enable & kIerReceived) != 0 || state_.listens_by_polling;
}

std::size_t Serial16550::capacity() const {
  return fifo_enabled() ? SerialState::kFifoSize : 1;
}

std::size_t Serial16550::trigger_level() const {
  constexpr std::array<std::size_t, 4> kLevels{1, 4, 8, 14};
  return fifo_enabled() ? kLevels[state_.fifo_control >> 6U] : 1;
}

std::size_t Serial16550::room() const {
  if (!listening() || loopback() || state_.returned_count > 0) {
    return 0;
  }
  return capacity() - state_.received_count;
}

void Serial16550::settle(bool pulse) {
  // On a PC the pin reaches the interrupt controller through a gate that OUT2 opens; in loopback mode the
  // outputs are held inactive (section 8.7), OUT2 with them.
  const bool high = interrupt_id() != kIirNone && (state_.modem_control & kMcrOut2) != 0 && !loopback();
  if (high && (!pin_was_high_ || pulse)) {
    line_.trigger();
    edge_is_news_ = true;
  }
  pin_was_high_ = high;
}

void Serial16550::report_room() {
  // Only once the receiver is empty: one report for sixteen bytes instead of one for each.
  if (input_waits_ && state_.received_count == 0 && listening() && !loopback()) {
    input_waits_ = false;
    backend_.input_room_available();
  }
}

}  // namespace mayfly
