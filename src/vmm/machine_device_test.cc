// The life of a machine on the host's own /dev/kvm, with guests of a few instructions. Where there is no such
// device, or it may not be opened, every case is skipped and says why.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "base/metrics.h"
#include "base/mutex.h"
#include "support/fake_event.h"
#include "support/memory_of_file.h"
#include "support/real_mode_guest.h"
#include "vmm/machine.h"
#include "vmm/micro_vm.h"

namespace mayfly {
namespace {

using Clock = std::chrono::steady_clock;

// Long enough that only a hang reaches it.
constexpr std::chrono::seconds kHang{60};

// Keeps what the guest prints.
class Paper final : public SerialBackend {
 public:
  void transmit(std::uint8_t byte) override {
    const MutexLock lock(mutex_);
    text_.push_back(static_cast<char>(byte));
    changed_.notify_all();
  }
  void input_room_available() override {}

  std::size_t size() const {
    const MutexLock lock(mutex_);
    return text_.size();
  }
  bool has(const std::string& text) const {
    const MutexLock lock(mutex_);
    return text_.find(text) != std::string::npos;
  }
  // Waits until more than `size` bytes are there.
  bool grows_beyond(std::size_t size) {
    const auto deadline = Clock::now() + kHang;
    const MutexLock lock(mutex_);
    while (text_.size() <= size) {
      if (!changed_.wait_until(mutex_, deadline)) {
        return false;
      }
    }
    return true;
  }
  bool shows(const std::string& text) {
    const auto deadline = Clock::now() + kHang;
    const MutexLock lock(mutex_);
    while (text_.find(text) == std::string::npos) {
      if (!changed_.wait_until(mutex_, deadline)) {
        return false;
      }
    }
    return true;
  }

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  std::string text_ MAYFLY_GUARDED_BY(mutex_);
};

// With 1 and with 2 vCPUs: the second waits, inside KVM, to be started by the first.
class MachineDevice : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  void SetUp() override {
    if (!testing::open_kvm_or_skip()) {
      return;
    }
    ASSERT_TRUE(install_vcpu_kick_handler());
  }

  std::unique_ptr<Machine> build(const std::string& guest, HostKvm* ahead = nullptr) {
    VmConfig config;
    config.machine.vcpu_count = GetParam();
    config.machine.mem_size_mib = 32;
    config.boot_source.kernel_image_path = std::string(MAYFLY_GUESTS) + "/" + guest + ".elf";
    const auto files = GuestFiles::open(config.boot_source);
    EXPECT_TRUE(files.has_value()) << files.error().message();
    auto machine = Machine::build(config, {*files, {}}, surroundings(ahead));
    EXPECT_TRUE(machine.has_value()) << machine.error().error.message();
    return machine ? std::move(*machine) : nullptr;
  }

  MachineSurroundings surroundings(HostKvm* ahead = nullptr) {
    return {
        .registrar = registrar_,
        .console = paper_,
        .serial_metrics = metrics_,
        .trace = nullptr,
        .on_outcome =
            [this](const Outcome& outcome) { EXPECT_TRUE(expect_end_) << "it ended: " << outcome.detail; },
        .host_kvm = ahead};
  }

  static void expect_busy(const Result<void>& result) {
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().code(), ErrorCode::kBusy);
  }

  testing::ManualRegistrar registrar_;
  Paper paper_;
  SerialMetrics metrics_;
  bool expect_end_ = false;  // set before the machine is started
};

TEST_P(MachineDevice, a_guest_runs_from_its_start_on_and_never_while_it_is_paused) {
  const auto machine = build("flood");
  ASSERT_NE(machine, nullptr);
  EXPECT_EQ(machine->state(), Machine::State::kNotStarted);
  EXPECT_EQ(paper_.size(), 0U);
  ASSERT_TRUE(machine->start());
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(paper_.grows_beyond(paper_.size()));
    ASSERT_TRUE(machine->pause());
    EXPECT_EQ(machine->state(), Machine::State::kPaused);
    ASSERT_TRUE(machine->pause());  // again is no error
    const std::size_t size = paper_.size();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // a guest that still runs has time to show it
    ASSERT_EQ(paper_.size(), size);
    ASSERT_TRUE(machine->resume());
    EXPECT_EQ(machine->state(), Machine::State::kRunning);
    ASSERT_TRUE(machine->resume());
  }
  ASSERT_TRUE(paper_.grows_beyond(paper_.size()));
  EXPECT_TRUE(machine->stop());
  EXPECT_EQ(machine->state(), Machine::State::kStopped);
}

TEST_P(MachineDevice, what_was_made_ahead_is_of_use_once_and_then_made_in_place) {
  HostKvm ahead;
  ahead.start();
  for (int round = 0; round < 2; ++round) {
    const auto machine = build("flood", &ahead);
    ASSERT_NE(machine, nullptr);
    EXPECT_FALSE(ahead.take(nullptr).has_value());
    EXPECT_FALSE(ahead.take_supported(nullptr).has_value());
    ASSERT_TRUE(machine->start());
    EXPECT_TRUE(paper_.grows_beyond(paper_.size()));
    ASSERT_TRUE(machine->stop());
  }
}

TEST_P(MachineDevice, what_becomes_of_a_timer_under_way_is_heard_before_the_machine_goes_on) {
  MachineFrame frame = make_frame(testing::memory_of_file(), 0, Kvm::open().value(), {}, GetParam()).value();
  frame.processor.prepare = [](const Vcpu&) { return Result<void>(); };
  frame.processor.set_up = [](const Vcpu&) { return tl::expected<void, BuildError>(); };
  frame.timer = std::make_shared<Handover<Result<void>>>();
  frame.timer->give(fail(ErrorCode::kExhausted, "there is no timer"));
  const auto machine = Machine::make_ahead(std::move(frame), surroundings());
  ASSERT_TRUE(machine.has_value()) << machine.error().message();
  const auto restored =
      (*machine)->restore_ahead({.frame = nullptr, .devices = {}, .queues = {}, .state = {}});
  ASSERT_FALSE(restored.has_value());
  EXPECT_EQ(restored.error().error.message(), "there is no timer");
}

TEST_P(MachineDevice, a_guest_that_spins_with_interrupts_off_is_paused_resumed_and_stopped) {
  const auto machine = build("spin");
  ASSERT_NE(machine, nullptr);
  ASSERT_TRUE(machine->start());
  ASSERT_TRUE(paper_.shows("spinning\n"));
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(machine->pause());
    ASSERT_TRUE(machine->resume());
  }
  EXPECT_TRUE(machine->stop());
}

TEST_P(MachineDevice, a_paused_machine_stops) {
  const auto machine = build("spin");
  ASSERT_NE(machine, nullptr);
  ASSERT_TRUE(machine->start());
  ASSERT_TRUE(paper_.shows("spinning\n"));
  ASSERT_TRUE(machine->pause());
  EXPECT_TRUE(machine->stop());
  EXPECT_EQ(machine->state(), Machine::State::kStopped);
  EXPECT_TRUE(machine->stop());
}

TEST_P(MachineDevice, a_machine_that_was_never_started_stops) {
  const auto machine = build("flood");
  ASSERT_NE(machine, nullptr);
  EXPECT_TRUE(machine->stop());
  EXPECT_EQ(paper_.size(), 0U);
}

TEST_P(MachineDevice, what_the_state_does_not_allow_is_refused) {
  const auto machine = build("spin");
  ASSERT_NE(machine, nullptr);
  expect_busy(machine->pause());
  expect_busy(machine->resume());
  EXPECT_TRUE(machine->notify_generation_change());
  ASSERT_TRUE(machine->start());
  expect_busy(machine->start());
  expect_busy(machine->notify_generation_change());
  ASSERT_TRUE(machine->stop());
  expect_busy(machine->start());
  expect_busy(machine->pause());
  expect_busy(machine->resume());
}

TEST_P(MachineDevice, a_guest_with_a_kvmclock_is_told_that_it_was_paused) {
  const std::uint64_t failed = metrics().vcpu.kvmclock_ctrl_fails.value();
  const auto machine = build("kvmclock");
  ASSERT_NE(machine, nullptr);
  ASSERT_TRUE(machine->start());
  ASSERT_TRUE(paper_.shows("ready\n"));
  ASSERT_TRUE(machine->pause());
  EXPECT_FALSE(paper_.has("told\n"));
  ASSERT_TRUE(machine->resume());
  EXPECT_TRUE(paper_.shows("told\n"));
  EXPECT_EQ(metrics().vcpu.kvmclock_ctrl_fails.value(), failed);
  EXPECT_TRUE(machine->stop());
}

TEST_P(MachineDevice, a_guest_is_asked_to_shut_down_once_it_listens) {
  const auto machine = build("shutdown_request");
  ASSERT_NE(machine, nullptr);
  expect_busy(machine->request_shutdown());
  expect_end_ = true;
  ASSERT_TRUE(machine->start());
  ASSERT_TRUE(paper_.shows("closed\n"));
  expect_busy(machine->request_shutdown());
  while (machine->serial().receive(std::array<std::uint8_t, 1>{'x'}) == 0) {
    std::this_thread::yield();  // the guest is about to listen to its line
  }
  ASSERT_TRUE(paper_.shows("open\n"));
  // Asked while it is paused it hears of it afterwards.
  ASSERT_TRUE(machine->pause());
  EXPECT_TRUE(machine->request_shutdown());
  EXPECT_TRUE(machine->request_shutdown());
  EXPECT_FALSE(paper_.has("PASS\n"));
  ASSERT_TRUE(machine->resume());
  EXPECT_TRUE(paper_.shows("PASS\n"));
  EXPECT_TRUE(machine->stop());
  expect_busy(machine->request_shutdown());
}

TEST_P(MachineDevice, a_guest_that_goes_on_finds_a_new_generation_and_is_told) {
  const auto machine = build("generation");
  ASSERT_NE(machine, nullptr);
  expect_end_ = true;
  ASSERT_TRUE(machine->start());
  ASSERT_TRUE(paper_.shows("open\n"));
  expect_busy(machine->notify_generation_change());
  ASSERT_TRUE(machine->pause());
  EXPECT_TRUE(machine->notify_generation_change());
  EXPECT_FALSE(paper_.has("PASS\n"));
  ASSERT_TRUE(machine->resume());
  EXPECT_TRUE(paper_.shows("PASS\n"));
  EXPECT_TRUE(machine->stop());
  expect_busy(machine->notify_generation_change());
}

// As it may in the middle of a live snapshot, which then finds it paused.
TEST_P(MachineDevice, a_guest_that_has_ended_is_not_saved) {
  std::atomic<bool> ended = false;
  MicroVm vm({.registrar = registrar_,
              .serial_metrics = metrics_,
              .console = {},
              .on_outcome = [&ended](const Outcome&) { ended = true; }});
  ASSERT_TRUE(
      vm.put_machine_config({.vcpu_count = GetParam(), .mem_size_mib = 32, .track_dirty_pages = true}));
  BootSourceConfig boot;
  boot.kernel_image_path = std::string(MAYFLY_GUESTS) + "/reset_acpi.elf";
  ASSERT_TRUE(vm.put_boot_source(boot));
  ASSERT_TRUE(vm.start());
  while (!ended) {
    std::this_thread::yield();
  }
  const SnapshotRequest live{.state_path = "state", .memory_path = "memory", .live = true};
  expect_busy(vm.check_snapshot(live));
  ASSERT_TRUE(vm.pause());
  for (const SnapshotRequest& request : {live, {.state_path = "state", .memory_path = "memory"}}) {
    const auto captured = vm.capture(request);
    ASSERT_FALSE(captured);
    EXPECT_EQ(captured.error().message(), "the guest has ended: there is nothing left that could go on");
  }
  EXPECT_TRUE(vm.stop());
}

INSTANTIATE_TEST_SUITE_P(VcpuCounts, MachineDevice, ::testing::Values(1U, 2U),
                         [](const auto& test) { return "with_" + std::to_string(test.param) + "_vcpus"; });

}  // namespace
}  // namespace mayfly
