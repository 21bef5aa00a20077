// Runs a program of accesses and input, given as bytes, on a 16550A and on its model, and compares them step
// by step.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/serial/serial.h"
#include "serial_model.h"

namespace mayfly::testing {

class SerialExerciser final : public InterruptLine, public SerialBackend {
 public:
  // The first difference as a sentence, or nothing.
  std::optional<std::string> run(std::span<const std::uint8_t> program) {
    std::size_t step = 0;
    for (std::size_t at = 0; at + 1 < program.size(); ++step) {
      const std::uint8_t what = program[at];
      const std::uint8_t value = program[at + 1];
      at += 2;
      std::optional<std::string> difference;
      switch (what >> 6U) {
        case 0:
          difference = read(what & 7U, 1U << ((what >> 3U) & 3U));
          break;
        case 1:
          difference = write(what & 7U, value);
          break;
        case 2:
          difference = input(what & 0x3fU, value);
          break;
        default:
          difference = save_and_restore();
          break;
      }
      if (difference) {
        return "step " + std::to_string(step) + ": " + *difference;
      }
    }
    return std::nullopt;
  }

 private:
  void trigger() override { ++edges_; }
  void transmit(std::uint8_t byte) override { sent_.push_back(byte); }
  void input_room_available() override { ++reports_; }

  std::optional<std::string> read(unsigned reg, unsigned wanted) {
    std::array<std::uint8_t, 8> data{};
    const std::size_t size = std::min<std::size_t>(wanted, 8 - reg);
    // A wide read is so many single ones: their edges are compared as a sum.
    bool edge_due = false;
    bool edge_allowed = false;
    edges_ = 0;
    uart_.bus_read(reg, std::span(data).first(size));
    for (std::size_t i = 0; i < size; ++i) {
      const auto effect = model_.read(reg + static_cast<unsigned>(i));
      if (effect.value != data.at(i)) {
        return "register " + std::to_string(reg + i) + " reads as " + std::to_string(data.at(i)) +
               " instead of " + std::to_string(effect.value);
      }
      edge_due = edge_due || (effect.pin_after && (!effect.pin_before || effect.pin_dipped));
      edge_allowed = edge_allowed || effect.pin_after;
    }
    return check_edges(edge_due, edge_allowed);
  }

  std::optional<std::string> write(unsigned reg, std::uint8_t value) {
    edges_ = 0;
    sent_.clear();
    const std::array<std::uint8_t, 1> data{value};
    uart_.bus_write(reg, data);
    const auto effect = model_.write(reg, value);
    if (sent_ != (effect.sent ? std::vector{*effect.sent} : std::vector<std::uint8_t>{})) {
      return "a write to register " + std::to_string(reg) + " sent the wrong bytes";
    }
    return check_edges(effect.pin_after && !effect.pin_before, effect.pin_after);
  }

  std::optional<std::string> input(std::size_t size, std::uint8_t first) {
    std::vector<std::uint8_t> bytes(size);
    for (std::size_t i = 0; i < size; ++i) {
      bytes[i] = static_cast<std::uint8_t>(first + i);
    }
    edges_ = 0;
    const bool before = model_.pin();
    const std::size_t room = uart_.input_room();
    if (room != model_.room()) {
      return "room for " + std::to_string(room) + " bytes";
    }
    const bool between = model_.pin();
    const std::size_t taken = uart_.receive(bytes);
    if (taken != model_.receive(bytes)) {
      return "took " + std::to_string(taken) + " bytes";
    }
    waits_ = taken < size || (size == 0 && room == 0);
    reports_ = 0;
    const bool after = model_.pin();
    return check_edges((between && !before) || (after && taken > 0 && model_.received_enabled()), after);
  }

  std::optional<std::string> save_and_restore() {
    const bool pin = model_.pin();
    edges_ = 0;
    reports_ = 0;
    if (!uart_.restore(uart_.save())) {
      return "its own state is refused";
    }
    waits_ = true;
    return check_edges(pin, pin);
  }

  std::optional<std::string> check_edges(bool due, bool allowed) {
    if (due && edges_ == 0) {
      return "a rising pin made no edge";
    }
    if (!allowed && edges_ > 0) {
      return "an edge without a source";
    }
    if (waits_ && reports_ == 0 && model_.sender_could_send()) {
      return "the sender was not told of room";
    }
    return std::nullopt;
  }

  int edges_ = 0;
  int reports_ = 0;
  bool waits_ = false;  // the sender has been refused and counts on a report
  std::vector<std::uint8_t> sent_;
  SerialMetrics metrics_;
  Serial16550 uart_{*this, *this, metrics_};
  SerialModel model_;
};

}  // namespace mayfly::testing
