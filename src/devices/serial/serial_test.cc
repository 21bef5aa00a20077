#include "devices/serial/serial.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "support/bus_access.h"
#include "support/serial_exerciser.h"

namespace mayfly {
namespace {

// Register names of the data sheet.
enum Register : std::uint64_t {
  kRbr = 0,
  kThr = 0,
  kDll = 0,
  kIer = 1,
  kDlm = 1,
  kIir = 2,
  kFcr = 2,
  kLcr = 3,
  kMcr = 4,
  kLsr = 5,
  kMsr = 6,
  kScr = 7
};

constexpr std::uint8_t kOut2 = 0x08;
constexpr std::uint8_t kLoop = 0x10;

class FakeLine final : public InterruptLine {
 public:
  void trigger() override { ++edges; }
  int edges = 0;
};

class FakeBackend final : public SerialBackend {
 public:
  void transmit(std::uint8_t byte) override { sent.push_back(static_cast<char>(byte)); }
  void input_room_available() override { ++rooms; }
  std::string sent;
  int rooms = 0;
};

class Serial : public ::testing::Test {
 public:
  std::uint8_t in(std::uint64_t offset) { return testing::read_byte(uart, offset); }
  void out(std::uint64_t offset, unsigned value) {
    testing::write_byte(uart, offset, static_cast<std::uint8_t>(value));
  }
  std::size_t receive(std::string_view text) {
    const std::vector<std::uint8_t> bytes(text.begin(), text.end());
    return uart.receive(bytes);
  }
  // Edges since the last call.
  int edges() { return std::exchange(line.edges, 0); }
  // Interrupts on as a PC's driver does it.
  void enable(unsigned sources, unsigned fifo_control = 0) {
    out(kFcr, fifo_control);
    out(kMcr, kOut2 | 0x03);
    out(kIer, sources);
    edges();
  }

  FakeLine line;
  FakeBackend backend;
  SerialMetrics metrics;
  Serial16550 uart{line, backend, metrics};
};

// --- Reset and plain registers

TEST_F(Serial, after_reset_the_registers_are_as_the_data_sheet_has_them) {
  EXPECT_EQ(in(kIer), 0x00);
  EXPECT_EQ(in(kIir), 0x01);
  EXPECT_EQ(in(kLcr), 0x00);
  EXPECT_EQ(in(kMcr), 0x00);
  EXPECT_EQ(in(kLsr), 0x60);
  EXPECT_EQ(in(kMsr)&0x0f, 0x00);
  EXPECT_EQ(line.edges, 0);
}

TEST_F(Serial, every_value_written_to_a_register_reads_back_in_the_bits_that_exist) {
  struct Case {
    Register offset;
    unsigned bits;
  };
  const std::vector<Case> registers{{kIer, 0x0f}, {kMcr, 0x1f}, {kScr, 0xff}, {kLcr, 0xff}};
  for (const auto& reg : registers) {
    for (unsigned value = 0; value < 256; ++value) {
      out(reg.offset, value);
      EXPECT_EQ(in(reg.offset), value & reg.bits) << reg.offset;
    }
  }
}

TEST_F(Serial, divisor_access_turns_the_first_two_registers_into_the_divisor) {
  enable(0x05);
  receive("a");
  out(kLcr, 0x83);
  out(kDll, 0x34);
  out(kDlm, 0x12);
  EXPECT_EQ(in(kDll), 0x34);
  EXPECT_EQ(in(kDlm), 0x12);
  EXPECT_TRUE(backend.sent.empty());
  out(kLcr, 0x03);
  EXPECT_EQ(in(kIer), 0x05);
  EXPECT_EQ(in(kRbr), 'a');
  out(kLcr, 0x80);
  EXPECT_EQ(in(kDll), 0x34);
}

TEST_F(Serial, status_registers_ignore_writes_and_count_them) {
  out(kLsr, 0xff);
  out(kMsr, 0xff);
  EXPECT_EQ(in(kLsr), 0x60);
  EXPECT_EQ(in(kMsr), 0xb0);
  EXPECT_EQ(metrics.missed_write_count, 2U);
}

TEST_F(Serial, a_wide_access_is_split_into_bytes_at_ascending_registers) {
  const std::array<std::uint8_t, 2> data{'w', 0x0f};
  uart.bus_write(kThr, data);
  EXPECT_EQ(backend.sent, "w");
  EXPECT_EQ(in(kIer), 0x0f);
  std::array<std::uint8_t, 4> wide{};
  out(kScr, 0x77);
  uart.bus_read(kMcr, wide);
  EXPECT_EQ(wide, (std::array<std::uint8_t, 4>{0x00, 0x60, 0xb0, 0x77}));
}

// --- Transmitter

TEST_F(Serial, bytes_written_are_sent_in_order_and_the_transmitter_stays_empty) {
  for (const char c : std::string("hello")) {
    out(kThr, static_cast<unsigned char>(c));
    EXPECT_EQ(in(kLsr)&0x60, 0x60);
  }
  EXPECT_EQ(backend.sent, "hello");
  EXPECT_EQ(metrics.write_count, 5U);
}

TEST_F(Serial, enabling_the_transmit_interrupt_while_empty_raises_it_each_time) {
  enable(0);
  for (int i = 0; i < 3; ++i) {
    out(kIer, 0x02);
    EXPECT_EQ(edges(), 1);
    EXPECT_EQ(in(kIir), 0x02);
    EXPECT_EQ(in(kIir), 0x01);
    out(kIer, 0x00);
    EXPECT_EQ(edges(), 0);
  }
  out(kIer, 0x02);
  in(kIir);
  edges();
  out(kIer, 0x02);  // enabled already: no change, no interrupt
  EXPECT_EQ(in(kIir), 0x01);
  EXPECT_EQ(edges(), 0);
}

TEST_F(Serial, reading_iir_clears_the_transmit_interrupt_and_the_next_byte_raises_it_again) {
  enable(0x02);
  EXPECT_EQ(in(kIir), 0x02);
  out(kThr, 'a');
  EXPECT_EQ(edges(), 1);
  out(kThr, 'b');  // whom the first edge calls will find this one too
  EXPECT_EQ(edges(), 0);
  in(kLsr);
  out(kThr, 'c');  // the guest may have come and looked
  EXPECT_EQ(edges(), 1);
  out(kScr, 0);
  out(kThr, 'd');
  EXPECT_EQ(edges(), 1);
  out(kMcr, 0);
  out(kMcr, kOut2);  // an edge; then the divisor behind THR's offset is an access like any other
  out(kLcr, 0x80);
  edges();
  out(kDll, 1);
  out(kLcr, 0);
  out(kThr, 'e');
  EXPECT_EQ(edges(), 1);
  EXPECT_EQ(in(kIir), 0x02);
  EXPECT_EQ(in(kIir), 0x01);
}

TEST_F(Serial, reading_iir_that_names_another_source_leaves_the_transmit_interrupt_pending) {
  enable(0x03);
  receive("x");
  EXPECT_EQ(in(kIir), 0x04);
  EXPECT_EQ(in(kIir), 0x04);
  EXPECT_EQ(in(kRbr), 'x');
  EXPECT_EQ(in(kIir), 0x02);
  EXPECT_EQ(in(kIir), 0x01);
}

TEST_F(Serial, disabling_the_transmit_interrupt_takes_it_back) {
  enable(0x02);
  out(kIer, 0x00);
  EXPECT_EQ(in(kIir), 0x01);
}

// --- Receiver without FIFOs

TEST_F(Serial, without_fifos_the_receiver_holds_one_byte) {
  enable(0x01);
  EXPECT_EQ(receive("ab"), 1U);
  EXPECT_EQ(edges(), 1);
  EXPECT_EQ(in(kIir), 0x04);
  EXPECT_EQ(in(kLsr), 0x61);
  EXPECT_EQ(in(kRbr), 'a');
  EXPECT_EQ(in(kLsr), 0x60);
  EXPECT_EQ(in(kIir), 0x01);
  EXPECT_EQ(backend.rooms, 1);
  EXPECT_EQ(receive("b"), 1U);
  EXPECT_EQ(edges(), 1);
  EXPECT_EQ(in(kRbr), 'b');
  EXPECT_EQ(metrics.read_count, 2U);
}

TEST_F(Serial, reading_an_empty_receiver_gives_zero_and_is_counted) {
  EXPECT_EQ(in(kRbr), 0);
  EXPECT_EQ(metrics.missed_read_count, 1U);
  EXPECT_EQ(metrics.read_count, 0U);
}

TEST_F(Serial, without_fifos_an_overrun_destroys_the_older_byte) {
  out(kMcr, kLoop);
  out(kThr, 'a');
  out(kThr, 'b');
  EXPECT_EQ(in(kLsr), 0x63);
  EXPECT_EQ(in(kLsr), 0x61);  // reading clears the error
  EXPECT_EQ(in(kRbr), 'b');
}

// --- Receiver with FIFOs

TEST_F(Serial, each_trigger_level_divides_received_data_from_the_timeout) {
  const std::array<unsigned, 4> levels{1, 4, 8, 14};
  for (unsigned setting = 0; setting < 4; ++setting) {
    for (unsigned count = 1; count <= 16; ++count) {
      enable(0x01, setting << 6 | 0x07);
      EXPECT_EQ(receive(std::string(count, 'x')), count);
      EXPECT_EQ(in(kIir), count >= levels.at(setting) ? 0xc4 : 0xcc) << setting << " " << count;
      for (unsigned left = count; left > 0; --left) {
        EXPECT_EQ(in(kRbr), 'x');
      }
      EXPECT_EQ(in(kIir), 0xc1);
    }
  }
}

TEST_F(Serial, the_fifo_takes_sixteen_bytes_and_keeps_their_order) {
  enable(0x01, 0x01);
  EXPECT_EQ(uart.input_room(), 16U);
  EXPECT_EQ(receive("0123456789abcdefgh"), 16U);
  EXPECT_EQ(uart.input_room(), 0U);
  for (const char c : std::string("0123456789abcdef")) {
    EXPECT_EQ(in(kLsr), 0x61);
    EXPECT_EQ(in(kRbr), c);
  }
  EXPECT_EQ(in(kLsr), 0x60);
}

TEST_F(Serial, a_full_fifo_keeps_its_bytes_on_overrun) {
  out(kFcr, 0x01);
  out(kMcr, kLoop);
  for (unsigned i = 0; i < 18; ++i) {
    out(kThr, i);
  }
  EXPECT_EQ(in(kLsr), 0x63);
  for (unsigned i = 0; i < 16; ++i) {
    EXPECT_EQ(in(kRbr), i);
  }
  EXPECT_EQ(in(kLsr), 0x60);
}

TEST_F(Serial, a_change_of_the_fifo_mode_empties_the_receiver_both_ways) {
  out(kMcr, kLoop);
  out(kThr, 'a');
  out(kFcr, 0x01);
  EXPECT_EQ(in(kLsr), 0x60);
  out(kThr, 'b');
  out(kFcr, 0x01);  // no change
  EXPECT_EQ(in(kLsr), 0x61);
  out(kFcr, 0x00);
  EXPECT_EQ(in(kLsr), 0x60);
}

TEST_F(Serial, the_receiver_reset_bit_empties_the_receiver_and_clears_itself) {
  out(kFcr, 0x01);
  out(kMcr, kLoop);
  out(kThr, 'a');
  out(kFcr, 0x03);
  EXPECT_EQ(in(kLsr), 0x60);
  out(kThr, 'b');
  EXPECT_EQ(in(kRbr), 'b');
  out(kThr, 'c');
  out(kFcr, 0x05);  // the transmitter's reset leaves the receiver alone
  EXPECT_EQ(in(kRbr), 'c');
}

TEST_F(Serial, fifo_control_bits_are_ignored_unless_bit_0_is_set) {
  out(kMcr, kLoop);
  out(kThr, 'a');
  out(kFcr, 0xc2);
  EXPECT_EQ(in(kLsr), 0x61);
  EXPECT_EQ(in(kIir), 0x01);
}

TEST_F(Serial, iir_shows_whether_the_fifos_are_on) {
  EXPECT_EQ(in(kIir)&0xc0, 0x00);
  out(kFcr, 0x01);
  EXPECT_EQ(in(kIir)&0xc0, 0xc0);
  out(kFcr, 0x00);
  EXPECT_EQ(in(kIir)&0xc0, 0x00);
}

// --- Interrupts

TEST_F(Serial, sources_are_reported_in_the_order_of_their_priority) {
  out(kFcr, 0xc1);
  out(kMcr, kLoop);
  for (unsigned i = 0; i < 17; ++i) {
    out(kThr, i);
  }
  out(kMcr, kOut2 | kLoop);  // DCD changes
  out(kIer, 0x0f);
  EXPECT_EQ(in(kIir), 0xc6);
  in(kLsr);
  EXPECT_EQ(in(kIir), 0xc4);
  for (int i = 0; i < 3; ++i) {
    in(kRbr);
  }
  EXPECT_EQ(in(kIir), 0xcc);
  for (int i = 0; i < 13; ++i) {
    in(kRbr);
  }
  EXPECT_EQ(in(kIir), 0xc2);
  EXPECT_EQ(in(kIir), 0xc0);
  EXPECT_EQ(in(kIir), 0xc0);  // only reading MSR clears it
  in(kMsr);
  EXPECT_EQ(in(kIir), 0xc1);
}

TEST_F(Serial, a_source_that_is_not_enabled_is_not_reported) {
  out(kMcr, kLoop);
  out(kThr, 'a');
  out(kThr, 'b');
  out(kMcr, kOut2 | kLoop);
  for (unsigned enabled = 0; enabled < 16; ++enabled) {
    out(kIer, 0);
    out(kIer, enabled);
    const unsigned expected = (enabled & 4) != 0   ? 0x06
                              : (enabled & 1) != 0 ? 0x04
                              : (enabled & 2) != 0 ? 0x02
                              : (enabled & 8) != 0 ? 0x00
                                                   : 0x01;
    EXPECT_EQ(in(kIir), expected) << enabled;
  }
}

TEST_F(Serial, out2_gates_the_edge_but_not_iir) {
  out(kIer, 0x02);
  EXPECT_EQ(line.edges, 0);
  out(kMcr, kOut2);
  EXPECT_EQ(edges(), 1);
  out(kMcr, 0);
  out(kMcr, kOut2);
  EXPECT_EQ(edges(), 1);
  EXPECT_EQ(in(kIir), 0x02);
}

TEST_F(Serial, loopback_holds_out2_inactive_and_with_it_the_interrupt) {
  out(kMcr, kOut2 | kLoop);
  out(kIer, 0x02);
  EXPECT_EQ(line.edges, 0);
  EXPECT_EQ(in(kIir), 0x02);
  out(kIer, 0x03);
  out(kThr, 'a');
  out(kMcr, kOut2);
  EXPECT_EQ(edges(), 1);
}

TEST_F(Serial, a_source_that_joins_a_pin_already_high_makes_no_edge_but_input_does) {
  enable(0x03, 0x01);
  out(kMcr, kOut2);
  out(kIer, 0x0b);
  EXPECT_EQ(edges(), 0);
  receive("a");
  EXPECT_EQ(edges(), 1);
  receive("b");
  EXPECT_EQ(edges(), 1);
}

TEST_F(Serial, reading_below_the_trigger_level_raises_the_timeout_anew) {
  enable(0x01, 0xc1);
  receive("0123456789abcdef");
  EXPECT_EQ(edges(), 1);
  for (int left = 15; left >= 14; --left) {
    in(kRbr);
    EXPECT_EQ(edges(), 0) << left;
  }
  for (int left = 13; left >= 1; --left) {
    in(kRbr);
    EXPECT_EQ(edges(), 1) << left;
    EXPECT_EQ(in(kIir), 0xcc);
  }
  in(kRbr);
  EXPECT_EQ(edges(), 0);
}

// --- Modem

TEST_F(Serial, the_line_shows_a_peer_that_is_present_and_ready) {
  EXPECT_EQ(in(kMsr), 0xb0);
}

TEST_F(Serial, loopback_routes_every_modem_output_to_its_input) {
  for (unsigned control = 0; control < 16; ++control) {
    out(kMcr, kLoop | control);
    const unsigned expected = ((control & 1) != 0 ? 0x20U : 0U) | ((control & 2) != 0 ? 0x10U : 0U) |
                              ((control & 4) != 0 ? 0x40U : 0U) | ((control & 8) != 0 ? 0x80U : 0U);
    EXPECT_EQ(in(kMsr)&0xf0U, expected) << control;
  }
}

TEST_F(Serial, every_change_of_the_modem_lines_sets_its_delta_until_msr_is_read) {
  for (unsigned before = 0; before < 16; ++before) {
    for (unsigned after = 0; after < 16; ++after) {
      out(kMcr, kLoop | before);
      in(kMsr);
      out(kMcr, kLoop | after);
      const unsigned changed = before ^ after;
      const unsigned expected = ((changed & 2) != 0 ? 1U : 0U) | ((changed & 1) != 0 ? 2U : 0U) |
                                ((before & ~after & 4U) != 0 ? 4U : 0U) | ((changed & 8) != 0 ? 8U : 0U);
      EXPECT_EQ(in(kMsr)&0x0fU, expected) << before << " " << after;
      EXPECT_EQ(in(kMsr)&0x0fU, 0U);
    }
  }
}

TEST_F(Serial, deltas_add_up_until_they_are_read) {
  out(kMcr, kLoop);
  in(kMsr);
  out(kMcr, kLoop | 0x02);
  out(kMcr, kLoop);
  EXPECT_EQ(in(kMsr), 0x01);
}

TEST_F(Serial, the_modem_status_interrupt_is_cleared_by_reading_msr) {
  out(kIer, 0x08);
  out(kMcr, kLoop);
  EXPECT_EQ(in(kIir), 0x00);
  out(kMcr, kOut2);
  EXPECT_EQ(edges(), 1);
  in(kMsr);
  EXPECT_EQ(in(kIir), 0x01);
}

TEST_F(Serial, loopback_keeps_bytes_off_the_line) {
  out(kFcr, 0x01);
  out(kIer, 0x01);
  out(kMcr, kLoop);
  out(kThr, 'a');
  EXPECT_TRUE(backend.sent.empty());
  EXPECT_EQ(metrics.write_count, 0U);
  EXPECT_EQ(receive("line"), 0U);
  EXPECT_EQ(in(kRbr), 'a');
  EXPECT_EQ(metrics.read_count, 0U);
  EXPECT_EQ(backend.rooms, 0);
  out(kMcr, 0);
  EXPECT_EQ(backend.rooms, 1);
  EXPECT_EQ(receive("line"), 4U);
}

// --- When the guest listens

TEST_F(Serial, input_waits_until_received_data_is_enabled) {
  EXPECT_EQ(uart.input_room(), 0U);
  EXPECT_EQ(receive("a"), 0U);
  out(kIer, 0x02);
  EXPECT_EQ(backend.rooms, 0);
  out(kIer, 0x03);
  EXPECT_EQ(backend.rooms, 1);
  EXPECT_EQ(receive("a"), 1U);
  out(kIer, 0x02);
  EXPECT_EQ(receive("b"), 0U);
}

TEST_F(Serial, a_guest_that_only_polls_gets_its_input) {
  EXPECT_EQ(receive("a"), 0U);
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(in(kLsr), 0x60);
  }
  EXPECT_EQ(backend.rooms, 0);
  in(kLsr);
  EXPECT_EQ(backend.rooms, 1);
  EXPECT_EQ(receive("a"), 1U);
  EXPECT_EQ(in(kLsr), 0x61);
  EXPECT_EQ(in(kRbr), 'a');
  out(kThr, 'e');
  EXPECT_EQ(receive("b"), 1U);
  out(kIer, 0x00);  // a driver sets the part up: it is not the one that polled
  in(kRbr);
  EXPECT_EQ(receive("c"), 0U);
}

TEST_F(Serial, polling_for_the_transmitter_does_not_count_as_listening) {
  EXPECT_EQ(receive("a"), 0U);
  for (int i = 0; i < 100; ++i) {
    in(kLsr);
    in(kLsr);
    out(kThr, 'x');
    in(kLsr);
    in(kMsr);
  }
  EXPECT_EQ(backend.rooms, 0);
}

TEST_F(Serial, input_cleared_while_the_driver_sets_up_arrives_again_once) {
  out(kIer, 0x01);
  EXPECT_EQ(receive("a"), 1U);
  out(kFcr, 0x01);
  EXPECT_EQ(in(kLsr), 0x60);
  EXPECT_EQ(backend.rooms, 1);
  EXPECT_EQ(receive("b"), 1U);
  EXPECT_EQ(in(kRbr), 'a');
  EXPECT_EQ(in(kRbr), 'b');
  EXPECT_EQ(receive("cd"), 2U);
  out(kFcr, 0x03);
  EXPECT_EQ(uart.input_room(), 14U);
  out(kFcr, 0x03);
  EXPECT_EQ(in(kLsr), 0x60);
  EXPECT_EQ(uart.input_room(), 16U);
  EXPECT_EQ(in(kLsr), 0x60);
}

TEST_F(Serial, sixteen_cleared_bytes_come_back_one_by_one_without_fifos) {
  out(kFcr, 0x01);
  out(kIer, 0x01);
  EXPECT_EQ(receive("0123456789abcdef"), 16U);
  out(kFcr, 0x00);
  std::string got;
  while (uart.input_room() > 0 || (in(kLsr)&1) != 0) {
    if ((in(kLsr)&1) == 0) {
      break;
    }
    got.push_back(static_cast<char>(in(kRbr)));
  }
  EXPECT_EQ(got, "0123456789abcdef");
}

TEST_F(Serial, bytes_looped_back_do_not_return_after_a_clear) {
  out(kFcr, 0x01);
  out(kIer, 0x01);
  out(kMcr, kLoop);
  out(kThr, 'a');
  out(kFcr, 0x03);
  out(kMcr, 0);
  EXPECT_EQ(uart.input_room(), 16U);
  EXPECT_EQ(in(kLsr), 0x60);
}

// --- State

TEST_F(Serial, a_restored_port_goes_on_where_the_saved_one_was) {
  enable(0x03, 0x81);
  receive("abc");
  out(kScr, 0x5a);
  const SerialState state = uart.save();
  FakeLine other_line;
  FakeBackend other_backend;
  Serial16550 other(other_line, other_backend, metrics);
  ASSERT_TRUE(other.restore(state).has_value());
  EXPECT_EQ(other_line.edges, 1);
  for (std::uint64_t offset = 1; offset < 8; ++offset) {
    EXPECT_EQ(testing::read_byte(other, offset), in(offset)) << offset;
  }
  EXPECT_EQ(testing::read_byte(other, kRbr), 'a');
}

TEST_F(Serial, an_idle_port_is_restored_without_an_edge_and_asks_for_input) {
  enable(0x01, 0x01);
  ASSERT_TRUE(uart.restore(uart.save()).has_value());
  EXPECT_EQ(line.edges, 0);
  EXPECT_EQ(backend.rooms, 1);
}

TEST_F(Serial, a_state_that_no_guest_can_reach_is_refused) {
  const std::vector<std::function<void(SerialState&)>> lies{
      [](SerialState& s) { s.interrupt_enable = 0x10; },
      [](SerialState& s) { s.fifo_control = 0x03; },
      [](SerialState& s) { s.fifo_control = 0xc0; },
      [](SerialState& s) { s.modem_control = 0x20; },
      [](SerialState& s) { s.modem_delta = 0x10; },
      [](SerialState& s) { s.idle_polls = 17; },
      [](SerialState& s) { s.transmit_empty_pending = true; },
      [](SerialState& s) { s.received_count = 2; },
      [](SerialState& s) { s.fifo_control = 1, s.received_count = 17; },
      [](SerialState& s) { s.returned_count = 17; },
  };
  for (const auto& lie : lies) {
    SerialState state;
    lie(state);
    const auto restored = uart.restore(state);
    ASSERT_FALSE(restored.has_value());
    EXPECT_EQ(restored.error().code(), ErrorCode::kOutOfRange);
    EXPECT_EQ(in(kIir), 0x01);
  }
}

// --- Drivers

// What Linux's 8250 driver looks at when it tells the members of the family apart.
TEST_F(Serial, the_part_is_detected_as_a_16550a_by_the_steps_that_linux_takes) {
  // There is a chip: IER's low bits can be cleared and set.
  out(kIer, 0x00);
  EXPECT_EQ(in(kIer)&0x0f, 0x00);
  out(kIer, 0x0f);
  EXPECT_EQ(in(kIer)&0x0f, 0x0f);
  out(kIer, 0x00);
  // It is a UART: RTS and OUT2 come back as CTS and DCD.
  out(kMcr, 0x1a);
  EXPECT_EQ(in(kMsr)&0xf0, 0x90);
  out(kMcr, 0x00);
  // The enhanced feature register of later parts lies at offset 2 behind LCR 0xbf.
  out(kLcr, 0xbf);
  out(2, 0x00);
  out(kLcr, 0x00);
  out(kFcr, 0x01);
  EXPECT_EQ(in(kIir) >> 6, 3);  // 0: 8250, 1: unknown, 2: 16550, 3: 16550A or later
  out(kLcr, 0x80);
  EXPECT_NE(in(2), 0x00);  // 0: an ST16650
  out(kLcr, 0xbf);
  EXPECT_NE(in(2), 0x00);  // 0: an ST16650V2
  // National's later parts show MCR's loop bit in a register at offset 2 behind LCR 0xe0.
  out(kLcr, 0x00);
  const unsigned control = in(kMcr);
  out(kMcr, control ^ kLoop);
  out(kLcr, 0xe0);
  EXPECT_EQ(in(2) & kLoop, 0x00);
  out(kLcr, 0x00);
  out(kMcr, control);
  // A 16750 shows its 64-byte FIFO in IIR bit 5, which it takes from FCR bit 5 behind LCR 0x80.
  out(kLcr, 0x80);
  out(kFcr, 0x21);
  EXPECT_EQ(in(kIir)&0xe0, 0xc0);
  out(kLcr, 0x00);
  // An XScale has a unit-enable bit in IER.
  out(kIer, 0x40);
  EXPECT_EQ(in(kIer)&0x40, 0x00);
  // The FIFO is measured in loopback mode: 256 bytes in, sixteen out.
  out(kFcr, 0x07);
  out(kMcr, kLoop);
  for (unsigned i = 0; i < 256; ++i) {
    out(kThr, i);
  }
  int held = 0;
  while ((in(kLsr)&0x01) != 0) {
    in(kRbr);
    ++held;
  }
  EXPECT_EQ(held, 16);
  // At start-up: the transmit interrupt must come again when it is enabled again, or it counts as broken.
  out(kMcr, kOut2);
  for (int i = 0; i < 2; ++i) {
    out(kIer, 0x02);
    EXPECT_EQ(in(kIir)&0x01, 0x00);
    out(kIer, 0x00);
  }
}

// --- Against the model (tests/support/serial_model.h)

TEST(SerialAgainstModel, random_programs_make_no_difference) {
  for (unsigned seed = 0; seed < 3000; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::uint8_t> program(400);
    for (std::uint8_t& byte : program) {
      byte = static_cast<std::uint8_t>(random());
      // Bits that cut the port off are rarer than chance has them: loopback, divisor access, no interrupts.
      if (random() % 2 == 0) {
        byte &= 0x6f;
      }
    }
    testing::SerialExerciser exerciser;
    ASSERT_EQ(exerciser.run(program), std::nullopt) << "seed " << seed;
  }
}

TEST(SerialAgainstModel, every_sequence_of_four_telling_steps_makes_no_difference) {
  // {step, value}: reads of RBR, IIR, LSR, MSR; writes to THR, IER, FCR, MCR; input; a snapshot.
  constexpr std::array<std::array<std::uint8_t, 2>, 17> kSteps{{{0x00, 0},
                                                                {0x02, 0},
                                                                {0x05, 0},
                                                                {0x06, 0},
                                                                {0x40, 'a'},
                                                                {0x41, 0x00},
                                                                {0x41, 0x01},
                                                                {0x41, 0x0f},
                                                                {0x42, 0x00},
                                                                {0x42, 0x01},
                                                                {0x42, 0x43},
                                                                {0x44, 0x08},
                                                                {0x44, 0x10},
                                                                {0x44, 0x1f},
                                                                {0x81, 'b'},
                                                                {0x85, 'c'},
                                                                {0xc0, 0}}};
  // Each after three set-ups: as reset, ready without and with FIFOs.
  const std::vector<std::vector<std::uint8_t>> set_ups{
      {}, {0x44, 0x08, 0x41, 0x07}, {0x42, 0x41, 0x44, 0x08, 0x41, 0x0f}};
  constexpr std::size_t kCount = kSteps.size() * kSteps.size() * kSteps.size() * kSteps.size();
  for (const auto& set_up : set_ups) {
    for (std::size_t sequence = 0; sequence < kCount; ++sequence) {
      std::vector<std::uint8_t> program = set_up;
      std::size_t rest = sequence;
      for (int step = 0; step < 4; ++step, rest /= kSteps.size()) {
        program.insert(program.end(), kSteps.at(rest % kSteps.size()).begin(),
                       kSteps.at(rest % kSteps.size()).end());
      }
      testing::SerialExerciser exerciser;
      const auto difference = exerciser.run(program);
      ASSERT_EQ(difference, std::nullopt) << *difference << " in sequence " << sequence;
    }
  }
}

// --- Drivers that know only what interrupts tell them

// An interrupt controller's input in edge mode: remembers an edge while the handler runs.
class LatchedLine final : public InterruptLine {
 public:
  void trigger() override { pending = true; }
  bool pending = false;
};

// A sender and a guest whose driver knows only what interrupts tell it. Everything typed must arrive,
// everything queued must be sent, whatever the order of events: a lost edge shows as a driver that waits for
// ever.
class DriverTest : public ::testing::TestWithParam<unsigned> {
 public:
  class Wire final : public SerialBackend {
   public:
    void transmit(std::uint8_t byte) override { sent.push_back(byte); }
    void input_room_available() override { room_reported = true; }
    std::vector<std::uint8_t> sent;
    bool room_reported = true;
  };

  std::uint8_t in(std::uint64_t offset) { return testing::read_byte(uart, offset); }
  void out(std::uint64_t offset, unsigned value) {
    testing::write_byte(uart, offset, static_cast<std::uint8_t>(value));
  }

  // The host's side: offers input only after a report of room, as the console does.
  void host_runs() {
    while (wire.room_reported && typed < input.size()) {
      wire.room_reported = false;
      const std::size_t room = uart.input_room();
      if (room > 0) {
        const std::size_t offered = std::min(input.size() - typed, room);
        typed += uart.receive(std::span(input).subspan(typed, offered));
        wire.room_reported = true;
      }
    }
  }

  // One round of a handler: false where IIR named nothing.
  bool handle(std::mt19937& random) {
    const std::uint8_t id = in(kIir)&0x0f;
    if (id == 0x01) {
      return false;
    }
    if (interrupt_handlers_host_runs && random() % 4 == 0) {
      host_runs();
    }
    for (int budget = 256; budget > 0 && (in(kLsr)&0x01) != 0; --budget) {
      got.push_back(in(kRbr));
      if (interrupt_handlers_host_runs && random() % 8 == 0) {
        host_runs();
      }
    }
    in(kMsr);
    transmit_some();
    return true;
  }

  void transmit_some() {
    if ((ier & 0x02) == 0) {
      return;
    }
    for (int i = 0; i < 16 && written < output.size(); ++i) {
      out(kThr, output[written++]);
    }
    if (written == queued) {
      ier &= ~0x02U;
      out(kIer, ier);
    }
  }

  LatchedLine line;
  Wire wire;
  SerialMetrics metrics;
  Serial16550 uart{line, wire, metrics};
  std::vector<std::uint8_t> input = std::vector<std::uint8_t>(700);
  std::vector<std::uint8_t> output = std::vector<std::uint8_t>(500);
  std::size_t typed = 0;
  std::size_t written = 0;
  std::size_t queued = 0;
  std::vector<std::uint8_t> got;
  unsigned ier = 0;
  bool interrupt_handlers_host_runs = true;
};

TEST_P(DriverTest, an_edge_driven_driver_that_gives_up_half_way_never_waits_for_ever) {
  std::mt19937 random(GetParam());
  std::iota(input.begin(), input.end(), std::uint8_t{0});
  std::iota(output.begin(), output.end(), std::uint8_t{100});
  const unsigned pass_limit = 1 + GetParam() % 5;
  const unsigned trigger = GetParam() % 4;

  // As the driver sets up: interrupts before FIFOs.
  out(kMcr, kOut2 | 0x03);
  ier = 0x05;
  out(kIer, ier);
  host_runs();
  out(kFcr, trigger << 6 | 0x01);
  out(kFcr, trigger << 6 | 0x01);

  int idle = 0;
  while (idle < 50) {
    bool progress = false;
    switch (random() % 4) {
      case 0:
        host_runs();
        break;
      case 1:  // the guest queues output and kicks the transmitter
        if (queued < output.size()) {
          queued = std::min(output.size(), queued + random() % 40);
          if ((ier & 0x02) == 0 && written < queued) {
            ier |= 0x02;
            out(kIer, ier);
          }
          progress = true;
        }
        break;
      case 2: {  // a console message: interrupts off, bytes out, interrupts back
        out(kIer, 0);
        if (random() % 2 == 0) {
          host_runs();
        }
        in(kLsr);
        out(kIer, ier);
        break;
      }
      default:
        break;
    }
    if (line.pending) {
      line.pending = false;
      progress = true;
      for (unsigned pass = 0; pass < pass_limit && handle(random); ++pass) {
      }
    }
    idle = progress ? 0 : idle + 1;
  }
  EXPECT_EQ(queued, output.size());
  EXPECT_EQ(written, output.size());
  EXPECT_EQ(got, input);
}

// The least that section 8.5 lets a driver do: as many reads as the trigger level on received data, one on a
// time-out.
TEST_P(DriverTest, a_driver_that_reads_only_what_iir_promises_gets_all_input) {
  constexpr std::array<int, 4> kLevels{1, 4, 8, 14};
  std::mt19937 random(GetParam());
  std::iota(input.begin(), input.end(), std::uint8_t{0});
  const unsigned trigger = GetParam() % 4;
  out(kFcr, trigger << 6 | 0x01);
  out(kMcr, kOut2);
  out(kIer, 0x01);
  int idle = 0;
  while (idle < 50) {
    host_runs();
    ++idle;
    if (std::exchange(line.pending, false)) {
      idle = 0;
      // As the pin's edge is what calls the handler, it must look until nothing is named.
      for (unsigned id = in(kIir)&0x0f; id != 0x01; id = in(kIir)&0x0f) {
        for (int reads = id == 0x04 ? kLevels.at(trigger) : 1; reads > 0; --reads) {
          got.push_back(in(kRbr));
        }
        if (id == 0x0c && random() % 2 == 0) {
          break;  // a time-out comes again by itself
        }
      }
    }
  }
  EXPECT_EQ(got, input);
}

INSTANTIATE_TEST_SUITE_P(Seeds, DriverTest, ::testing::Range(0U, 120U));

}  // namespace
}  // namespace mayfly
