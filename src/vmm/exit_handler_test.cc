#include "vmm/exit_handler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/metrics.h"

namespace mayfly {
namespace {

using ::testing::ElementsAre;
using Bytes = std::vector<std::uint8_t>;

// Keeps what is written, and answers reads with the numbers 1, 2, 3, ... one a byte.
class Recorder final : public BusDevice {
 public:
  void bus_read(std::uint64_t offset, std::span<std::uint8_t> data) override {
    reads.emplace_back(offset, data.size());
    for (std::uint8_t& byte : data) {
      byte = ++last_;
    }
  }
  void bus_write(std::uint64_t offset, std::span<const std::uint8_t> data) override {
    writes.emplace_back(offset, Bytes(data.begin(), data.end()));
  }

  std::vector<std::pair<std::uint64_t, std::size_t>> reads;
  std::vector<std::pair<std::uint64_t, Bytes>> writes;

 private:
  std::uint8_t last_ = 0;
};

// How far a counter of the process has come since the test began.
class Rise {
 public:
  explicit Rise(const Counter& counter) : counter_(counter), before_(counter.value()) {}
  std::uint64_t operator()() const { return counter_.value() - before_; }

 private:
  const Counter& counter_;
  std::uint64_t before_;
};

constexpr std::uint16_t kPort = 0x3f8;
constexpr std::uint16_t kNoPort = 0x80;
constexpr std::uint64_t kAddress = 0xc0001000;
constexpr std::uint64_t kNoAddress = 0xd0000000;

class ExitHandlerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(ports_.insert(kPort, 8, port_device_, "port device"));
    ASSERT_TRUE(mmio_.insert(kAddress, 0x1000, mmio_device_, "MMIO device"));
  }

  // The exit leads to nothing: the guest goes on.
  void expect_nothing(const VcpuExit& exit) {
    const auto outcome = handler_.handle(exit);
    EXPECT_FALSE(outcome.has_value()) << (outcome ? outcome->detail : "");
  }

  void expect_outcome(const VcpuExit& exit, OutcomeKind kind, const std::string& detail) {
    const auto outcome = handler_.handle(exit);
    ASSERT_TRUE(outcome.has_value()) << detail;
    EXPECT_EQ(outcome->kind, kind) << detail;
    EXPECT_EQ(outcome->detail, detail);
  }

  void expect_failure(const VcpuExit& exit, const std::string& detail) {
    const Rise failures(metrics().vcpu.failures);
    expect_outcome(exit, OutcomeKind::kVcpuFailed, detail);
    EXPECT_EQ(failures(), 1U) << detail;
  }

  Recorder port_device_;
  Recorder mmio_device_;
  Bus ports_{"port"};
  Bus mmio_{"MMIO"};
  const ExitHandler handler_{7, {ports_, mmio_}};
};

TEST_F(ExitHandlerTest, a_port_write_reaches_its_device_and_is_counted) {
  const Rise writes(metrics().vcpu.exit_io_out);
  const Rise unknown(metrics().vmm.unknown_port_accesses);
  const Bytes data{0x12, 0x34};
  expect_nothing(PortWrite{kPort + 2, 2, 1, data});
  EXPECT_THAT(port_device_.writes, ElementsAre(std::pair(std::uint64_t{2}, data)));
  EXPECT_EQ(writes(), 1U);
  EXPECT_EQ(unknown(), 0U);
}

TEST_F(ExitHandlerTest, a_port_read_is_answered_by_its_device_and_is_counted) {
  const Rise reads(metrics().vcpu.exit_io_in);
  Bytes data(4);
  expect_nothing(PortRead{kPort + 4, 4, 1, data});
  EXPECT_THAT(data, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(port_device_.reads, ElementsAre(std::pair(std::uint64_t{4}, std::size_t{4})));
  EXPECT_EQ(reads(), 1U);
}

TEST_F(ExitHandlerTest, a_string_instruction_is_one_access_an_element_all_to_the_same_port) {
  for (const auto size : std::array<std::uint8_t, 3>{1, 2, 4}) {
    constexpr std::uint32_t kCount = 3;
    port_device_.writes.clear();
    port_device_.reads.clear();
    Bytes data(std::size_t{size} * kCount);
    for (std::size_t i = 0; i < data.size(); ++i) {
      data[i] = static_cast<std::uint8_t>(i);
    }
    expect_nothing(PortWrite{kPort, size, kCount, data});
    ASSERT_EQ(port_device_.writes.size(), kCount);
    Bytes seen;
    for (const auto& [offset, element] : port_device_.writes) {
      EXPECT_EQ(offset, 0U);
      EXPECT_EQ(element.size(), size);
      seen.insert(seen.end(), element.begin(), element.end());
    }
    EXPECT_EQ(seen, data);

    expect_nothing(PortRead{kPort, size, kCount, data});
    EXPECT_EQ(port_device_.reads,
              (std::vector<std::pair<std::uint64_t, std::size_t>>(kCount, {0U, std::size_t{size}})));
    EXPECT_EQ(data[1], data[0] + 1);
    EXPECT_EQ(data.back(), static_cast<std::uint8_t>(data[0] + data.size() - 1));
  }
}

TEST_F(ExitHandlerTest, a_string_of_no_elements_is_no_access) {
  expect_nothing(PortWrite{kPort, 1, 0, {}});
  expect_nothing(PortRead{kNoPort, 1, 0, {}});
  EXPECT_TRUE(port_device_.writes.empty());
}

TEST_F(ExitHandlerTest, a_port_that_nobody_answers_reads_as_all_ones_and_each_access_is_counted) {
  const Rise unknown(metrics().vmm.unknown_port_accesses);
  Bytes data(6);
  expect_nothing(PortRead{kNoPort, 2, 3, data});
  EXPECT_EQ(data, Bytes(6, 0xff));
  EXPECT_EQ(unknown(), 3U);
  expect_nothing(PortWrite{kNoPort, 2, 3, data});
  EXPECT_EQ(unknown(), 6U);
  // One that reaches over the device's end is nobody's as a whole.
  std::fill(data.begin(), data.end(), std::uint8_t{0});
  expect_nothing(PortRead{kPort + 7, 2, 1, std::span(data).first(2)});
  EXPECT_THAT(data, ElementsAre(0xff, 0xff, 0, 0, 0, 0));
  EXPECT_EQ(unknown(), 7U);
  EXPECT_TRUE(port_device_.reads.empty());
}

TEST_F(ExitHandlerTest, an_mmio_access_reaches_its_device_and_is_counted) {
  const Rise reads(metrics().vcpu.exit_mmio_read);
  const Rise writes(metrics().vcpu.exit_mmio_write);
  Bytes data(8);
  expect_nothing(MmioRead{kAddress + 0x10, data});
  EXPECT_THAT(data, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  expect_nothing(MmioWrite{kAddress + 0xff8, data});
  EXPECT_THAT(mmio_device_.writes, ElementsAre(std::pair(std::uint64_t{0xff8}, data)));
  EXPECT_EQ(reads(), 1U);
  EXPECT_EQ(writes(), 1U);
}

TEST_F(ExitHandlerTest, an_address_that_nobody_answers_reads_as_all_ones_and_is_counted) {
  const Rise unknown(metrics().vmm.unknown_mmio_accesses);
  for (const std::uint64_t address : {kNoAddress, kAddress + 0xffc, std::uint64_t{0} - 8, std::uint64_t{0}}) {
    Bytes data(8);
    expect_nothing(MmioRead{address, data});
    EXPECT_EQ(data, Bytes(8, 0xff)) << address;
    expect_nothing(MmioWrite{address, data});
  }
  EXPECT_EQ(unknown(), 8U);
  EXPECT_TRUE(mmio_device_.reads.empty());
  EXPECT_TRUE(mmio_device_.writes.empty());
}

TEST_F(ExitHandlerTest, ports_and_addresses_are_two_spaces) {
  Bytes data(1);
  expect_nothing(MmioRead{kPort, data});
  EXPECT_EQ(data[0], 0xff);
  EXPECT_TRUE(port_device_.reads.empty());
}

TEST_F(ExitHandlerTest, an_interruption_leads_to_nothing) {
  const Rise failures(metrics().vcpu.failures);
  expect_nothing(Interrupted{});
  EXPECT_EQ(failures(), 0U);
}

TEST_F(ExitHandlerTest, system_events_are_the_guests_own_endings_and_others_are_ignored) {
  const Rise failures(metrics().vcpu.failures);
  expect_outcome(SystemEvent{KVM_SYSTEM_EVENT_SHUTDOWN}, OutcomeKind::kGuestPowerOff,
                 "vCPU 7: KVM_SYSTEM_EVENT_SHUTDOWN");
  expect_outcome(SystemEvent{KVM_SYSTEM_EVENT_RESET}, OutcomeKind::kGuestReset,
                 "vCPU 7: KVM_SYSTEM_EVENT_RESET");
  expect_outcome(SystemEvent{KVM_SYSTEM_EVENT_CRASH}, OutcomeKind::kGuestCrash,
                 "vCPU 7: KVM_SYSTEM_EVENT_CRASH");
  expect_nothing(SystemEvent{0});
  expect_nothing(SystemEvent{0xffffffff});
  EXPECT_EQ(failures(), 0U);
}

TEST_F(ExitHandlerTest, a_shutdown_is_a_triple_fault) {
  expect_outcome(GuestShutdown{}, OutcomeKind::kTripleFault, "vCPU 7 shut down on a triple fault");
}

TEST_F(ExitHandlerTest, a_halt_is_a_failure) {
  expect_failure(Halted{}, "vCPU 7: KVM_EXIT_HLT, although the interrupt controller is in the kernel");
}

TEST_F(ExitHandlerTest, an_internal_error_is_told_with_its_suberror_and_data) {
  expect_failure(InternalError{.suberror = KVM_INTERNAL_ERROR_EMULATION, .data_count = 0, .data = {}},
                 "vCPU 7: KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION (1)");
  expect_failure(
      InternalError{
          .suberror = KVM_INTERNAL_ERROR_EMULATION, .data_count = 2, .data = {0xf, 0xfedcba9876543210, 0x77}},
      "vCPU 7: KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION (1), data 0xf 0xfedcba9876543210");
  expect_failure(InternalError{.suberror = 99, .data_count = 1, .data = {1}},
                 "vCPU 7: KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_? (99), data 0x1");

  InternalError full{.suberror = 3, .data_count = 16, .data = {}};
  full.data.fill(~std::uint64_t{0});
  const auto outcome = handler_.handle(full);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_TRUE(outcome->detail.ends_with("0xffffffffffffffff 0xffffffffffffffff")) << outcome->detail;
  EXPECT_EQ(std::count(outcome->detail.begin(), outcome->detail.end(), 'x'), 16);
}

TEST_F(ExitHandlerTest, a_failed_entry_is_told_with_the_hardwares_reason) {
  expect_failure(EntryFailed{0x80000021, 3},
                 "vCPU 7: KVM_EXIT_FAIL_ENTRY, hardware reason 0x80000021 on processor 3");
}

TEST_F(ExitHandlerTest, a_memory_fault_is_told_with_its_place) {
  expect_failure(MemoryFaulted{0, 0x1234000, 4096}, "vCPU 7: KVM_EXIT_MEMORY_FAULT, 4096 bytes at 0x1234000");
}

TEST_F(ExitHandlerTest, any_other_exit_is_a_failure_that_names_it) {
  expect_failure(OtherExit{KVM_EXIT_DEBUG}, "vCPU 7: unexpected KVM_EXIT_DEBUG (4)");
  expect_failure(OtherExit{12345}, "vCPU 7: unexpected KVM_EXIT_? (12345)");
}

TEST_F(ExitHandlerTest, a_flood_of_unknown_accesses_is_counted_in_full_and_logged_with_a_limit) {
  const Rise unknown(metrics().vmm.unknown_port_accesses);
  const Rise suppressed(metrics().logger.rate_limited_log_count);
  Bytes data(1);
  for (int i = 0; i < 10'000; ++i) {
    expect_nothing(PortRead{kNoPort, 1, 1, data});
  }
  EXPECT_EQ(unknown(), 10'000U);
  EXPECT_GT(suppressed(), 0U);
}

// Ends with the guest's own wish, as the monitor's sink does.
class NoSink final : public PowerSink {
 public:
  void power_event(PowerEvent /*event*/) noexcept override {}
};

TEST_F(ExitHandlerTest, a_write_by_which_the_guest_ends_itself_ends_the_vcpu) {
  NoSink sink;
  PowerLine line(sink);
  const ExitHandler handler(3, CpuBuses{ports_, mmio_, &line});
  const std::array<std::uint8_t, 1> byte{0};
  const VcpuExit write = PortWrite{kPort, 1, 1, byte};
  EXPECT_FALSE(handler.handle(write).has_value());
  line.request(PowerEvent::kPowerOff);
  const auto outcome = handler.handle(write);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->kind, OutcomeKind::kGuestPowerOff);
}

}  // namespace
}  // namespace mayfly
