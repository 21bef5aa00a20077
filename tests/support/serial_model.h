// A second description of the 16550A, to compare the device with. Written from the data sheet's tables as one
// predicate a signal instead of one function a register; knows nothing of the device's state or code.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

namespace mayfly::testing {

class SerialModel {
 public:
  // What one access must lead to.
  struct Effect {
    std::uint8_t value = 0;                           // of a read
    std::optional<std::uint8_t> sent = std::nullopt;  // of a write
    bool pin_before = false;
    bool pin_dipped = false;  // the pin went low for an instant and is high again
    bool pin_after = false;
  };

  Effect read(unsigned reg) {
    Effect effect;
    effect.pin_before = pin();
    polls_ = reg == 5 ? polls_ : 0;
    switch (reg) {
      case 0:
        if (dlab()) {
          effect.value = divisor_[0];
        } else if (!fifo_.empty()) {
          effect.value = fifo_.front();
          fifo_.pop_front();
          effect.pin_dipped = received_enabled() && !fifo_.empty() && fifo_.size() < trigger();
        }
        break;
      case 1:
        effect.value = dlab() ? divisor_[1] : ier_;
        break;
      case 2:
        effect.value = static_cast<std::uint8_t>((fifos_ ? 0xc0 : 0) + identification());
        if (identification() == 2) {
          thre_ = false;
        }
        break;
      case 3:
        effect.value = lcr_;
        break;
      case 4:
        effect.value = mcr_;
        break;
      case 5:
        effect.value = static_cast<std::uint8_t>(0x60 + (overrun_ ? 2 : 0) + (fifo_.empty() ? 0 : 1));
        overrun_ = false;
        polls_ = polls_ < 1000 ? polls_ + 1 : polls_;
        polled_ = polled_ || polls_ == 16;
        break;
      case 6:
        effect.value = static_cast<std::uint8_t>(lines() * 16 + deltas_);
        deltas_ = 0;
        break;
      default:
        effect.value = scr_;
        break;
    }
    effect.pin_after = pin();
    return effect;
  }

  Effect write(unsigned reg, std::uint8_t value) {
    Effect effect;
    effect.pin_before = pin();
    polls_ = 0;
    if (reg < 2 && dlab()) {
      divisor_.at(reg) = value;
    } else if (reg == 0) {
      if (looped()) {
        fresh_ = false;
        if (fifo_.size() >= depth()) {
          overrun_ = true;
          if (!fifos_) {
            fifo_.front() = value;
          }
        } else {
          fifo_.push_back(value);
        }
      } else {
        effect.sent = value;
      }
      thre_ = true;
    } else if (reg == 1) {
      if ((value & 2) != 0 && (ier_ & 2) == 0) {
        thre_ = true;
      }
      ier_ = value % 16;
      polled_ = false;
    } else if (reg == 2) {
      const bool on = (value & 1) != 0;
      if (on != fifos_ || (on && (value & 2) != 0)) {
        if (fresh_ && returned_.empty()) {
          returned_.swap(fifo_);
        }
        fifo_.clear();
        fresh_ = false;
      }
      fifos_ = on;
      level_ = on ? value / 64U : 0;
    } else if (reg == 3) {
      lcr_ = value;
    } else if (reg == 4) {
      const unsigned before = lines();
      mcr_ = value % 32;
      const unsigned changed = before ^ lines();
      // CTS, DSR, DCD: any change; RI: only when it ends.
      deltas_ |= static_cast<std::uint8_t>((changed & 0xb) | (before & ~lines() & 4));
    } else if (reg == 7) {
      scr_ = value;
    }
    effect.pin_after = pin();
    return effect;
  }

  // The sender asks for room, which is when bytes cleared before arrive again.
  std::size_t room() {
    if (!returned_.empty() && hears() && fifo_.empty()) {
      while (!returned_.empty() && fifo_.size() < depth()) {
        fifo_.push_back(returned_.front());
        returned_.pop_front();
      }
    }
    return hears() && returned_.empty() ? depth() - fifo_.size() : 0;
  }

  std::size_t receive(const std::vector<std::uint8_t>& bytes) {
    const std::size_t free = room();
    std::size_t taken = 0;
    while (taken < bytes.size() && taken < free) {
      fresh_ = fresh_ || fifo_.empty();
      fifo_.push_back(bytes[taken++]);
    }
    return taken;
  }

  bool pin() const { return identification() != 1 && (mcr_ & 0x18) == 0x08; }
  bool received_enabled() const { return (ier_ & 1) != 0; }
  bool sender_could_send() const { return hears() && fifo_.empty(); }

 private:
  bool dlab() const { return lcr_ >= 128; }
  bool looped() const { return (mcr_ & 0x10) != 0; }
  bool hears() const { return !looped() && (received_enabled() || polled_); }
  std::size_t depth() const { return fifos_ ? 16 : 1; }
  std::size_t trigger() const { return level_ == 0 ? 1 : level_ == 1 ? 4 : level_ == 2 ? 8 : 14; }
  // MSR bits 4-7 as a number: CTS 1, DSR 2, RI 4, DCD 8.
  unsigned lines() const {
    if (!looped()) {
      return 0xb;
    }
    return (mcr_ / 2U % 2U) + 2U * (mcr_ % 2U) + (mcr_ & 0xcU);
  }
  int identification() const {
    if (overrun_ && (ier_ & 4) != 0) {
      return 6;
    }
    if (!fifo_.empty() && received_enabled()) {
      return fifo_.size() < trigger() ? 12 : 4;
    }
    if (thre_ && (ier_ & 2) != 0) {
      return 2;
    }
    return deltas_ != 0 && (ier_ & 8) != 0 ? 0 : 1;
  }

  std::uint8_t ier_ = 0;
  std::uint8_t lcr_ = 0;
  std::uint8_t mcr_ = 0;
  std::uint8_t scr_ = 0;
  std::uint8_t deltas_ = 0;
  std::array<std::uint8_t, 2> divisor_{12, 0};
  bool fifos_ = false;
  unsigned level_ = 0;
  bool overrun_ = false;
  bool thre_ = false;
  bool fresh_ = false;  // the receiver holds nothing that was looped back or has returned before
  unsigned polls_ = 0;
  bool polled_ = false;
  std::deque<std::uint8_t> fifo_;
  std::deque<std::uint8_t> returned_;
};

}  // namespace mayfly::testing
