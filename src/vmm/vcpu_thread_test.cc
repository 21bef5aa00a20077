#include "vmm/vcpu_thread.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <string>

namespace mayfly {
namespace {

using Clock = std::chrono::steady_clock;

// Long enough that only a hang reaches it.
Clock::time_point hang_limit() {
  return Clock::now() + std::chrono::seconds(60);
}

// A guest that spins: it comes out only for a signal, as a vCPU in the guest does, or because exits are
// wanted.
class FakeCpu final : public GuestCpu {
 public:
  std::optional<Outcome> run_once() noexcept override {
    inside.fetch_add(1);
    runs.fetch_add(1);
    std::optional<Outcome> outcome;
    while (!want_exit_.load()) {
      if (end.load()) {
        outcome = Outcome{OutcomeKind::kGuestReset, "fake"};
        break;
      }
      if (block.load() && ::pause() != 0 && errno == EINTR) {
        break;
      }
    }
    inside.fetch_sub(1);
    return outcome;
  }
  std::optional<Outcome> settle() noexcept override {
    settled.fetch_add(1);
    return std::nullopt;
  }
  void want_exit(bool wanted) noexcept override { want_exit_.store(wanted); }

  bool exit_wanted() const { return want_exit_.load(); }

  void await_inside() const {
    while (inside.load() == 0) {
      std::this_thread::yield();
    }
  }

  std::atomic<int> inside{0};
  std::atomic<int> runs{0};
  std::atomic<int> settled{0};
  std::atomic<bool> end{false};
  std::atomic<bool> block{false};

 private:
  std::atomic<bool> want_exit_{false};
};

class VcpuThreadTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(install_vcpu_kick_handler()); }

  std::unique_ptr<VcpuThread> start(std::uint32_t index = 0) {
    auto vcpu = std::move(*VcpuThread::start(index));
    vcpu->take_on(cpu_, [this](const Outcome& outcome) {
      last_ = outcome.kind;
      outcomes_.fetch_add(1);
    });
    EXPECT_TRUE(vcpu->wait_ready());
    cpu_.settled = 0;
    return vcpu;
  }

  FakeCpu cpu_;
  std::atomic<int> outcomes_{0};
  std::atomic<OutcomeKind> last_{OutcomeKind::kStopped};
};

TEST_F(VcpuThreadTest, a_started_thread_runs_nothing_until_it_is_resumed) {
  auto vcpu = start();
  EXPECT_TRUE(vcpu->wait_parked(hang_limit()));
  EXPECT_EQ(cpu_.runs.load(), 0);
  vcpu->resume();
  cpu_.await_inside();
}

TEST_F(VcpuThreadTest, a_thread_is_confined_before_it_has_a_vcpu_and_settles_that_before_it_is_ready) {
  std::atomic<bool> confined = false;
  auto vcpu = std::move(*VcpuThread::start(3, [&confined]() -> Result<void> {
    confined = true;
    return {};
  }));
  while (!confined) {
    std::this_thread::yield();
  }
  EXPECT_EQ(cpu_.settled, 0);
  vcpu->take_on(cpu_, [](const Outcome&) {});
  ASSERT_TRUE(vcpu->wait_ready());
  EXPECT_EQ(cpu_.settled, 1);
  EXPECT_EQ(cpu_.runs, 0);
}

TEST_F(VcpuThreadTest, a_thread_that_is_not_confined_never_touches_its_vcpu) {
  auto vcpu = std::move(
      *VcpuThread::start(0, []() -> Result<void> { return fail(ErrorCode::kUnsupported, "no filter"); }));
  vcpu->take_on(cpu_, [](const Outcome&) {});
  const auto ready = vcpu->wait_ready();
  ASSERT_FALSE(ready);
  EXPECT_EQ(ready.error().message(), "no filter");
  vcpu->resume();
  vcpu->request_stop();
  EXPECT_TRUE(vcpu->wait_stopped(hang_limit()));
  EXPECT_EQ(cpu_.settled, 0);
  EXPECT_EQ(cpu_.runs, 0);
}

TEST_F(VcpuThreadTest, a_thread_that_never_gets_a_vcpu_ends) {
  auto vcpu = std::move(*VcpuThread::start(0));
  vcpu->request_stop();
  EXPECT_TRUE(vcpu->wait_stopped(hang_limit()));
}

TEST_F(VcpuThreadTest, parking_takes_a_spinning_guest_out_and_settles_it) {
  auto vcpu = start();
  for (int round = 1; round <= 200; ++round) {
    vcpu->resume();
    cpu_.await_inside();
    vcpu->request_park();
    ASSERT_TRUE(vcpu->wait_parked(hang_limit()));
    ASSERT_EQ(cpu_.inside.load(), 0);
    ASSERT_EQ(cpu_.settled.load(), round);
  }
}

TEST_F(VcpuThreadTest, resume_and_park_back_to_back_never_lose_a_command) {
  auto vcpu = start();
  for (int round = 0; round < 2000; ++round) {
    vcpu->resume();
    vcpu->request_park();
    ASSERT_TRUE(vcpu->wait_parked(hang_limit()));
    ASSERT_EQ(cpu_.inside.load(), 0);
  }
}

TEST_F(VcpuThreadTest, a_park_that_is_taken_back_at_once_leaves_the_guest_running) {
  auto vcpu = start();
  vcpu->resume();
  for (int round = 0; round < 200; ++round) {
    cpu_.await_inside();
    vcpu->request_park();
    vcpu->resume();
    // A wish to exit that stayed behind would let no run last.
    ASSERT_FALSE(cpu_.exit_wanted());
  }
  vcpu->request_park();
  EXPECT_TRUE(vcpu->wait_parked(hang_limit()));
}

TEST_F(VcpuThreadTest, signal_handlers_of_the_thread_have_a_stack_of_their_own) {
  // So that an overflow of the thread's stack is reported (base/crash.h). Threads start without one.
  struct StackCpu final : GuestCpu {
    std::optional<Outcome> run_once() noexcept override {
      ::sigaltstack(nullptr, &stack);
      return Outcome{OutcomeKind::kGuestReset, ""};
    }
    std::optional<Outcome> settle() noexcept override { return std::nullopt; }
    void want_exit(bool) noexcept override {}
    stack_t stack{};
  } cpu;
  std::atomic<bool> done{false};
  auto vcpu = std::move(*VcpuThread::start(0));
  vcpu->take_on(cpu, [&](const Outcome&) { done = true; });
  ASSERT_TRUE(vcpu->wait_ready());
  vcpu->resume();
  while (!done.load()) {
    std::this_thread::yield();
  }
  EXPECT_EQ(cpu.stack.ss_flags & SS_DISABLE, 0);
  EXPECT_GE(cpu.stack.ss_size, static_cast<std::size_t>(MINSIGSTKSZ));
}

TEST_F(VcpuThreadTest, a_guest_that_sleeps_in_the_kernel_is_stopped_by_the_signal) {
  cpu_.block = true;
  auto vcpu = start();
  vcpu->resume();
  cpu_.await_inside();
  // The fake may not yet be in pause(2): like KVM_RUN without immediate_exit it would miss one signal, so
  // repeat.
  do {
    vcpu->request_stop();
  } while (!vcpu->wait_stopped(Clock::now() + std::chrono::milliseconds(20)));
  EXPECT_EQ(cpu_.inside.load(), 0);
}

TEST_F(VcpuThreadTest, an_outcome_is_reported_once_and_the_thread_still_settles_parks_and_stops) {
  auto vcpu = start();
  vcpu->resume();
  cpu_.await_inside();
  cpu_.end = true;
  while (outcomes_.load() == 0) {
    std::this_thread::yield();
  }
  EXPECT_EQ(last_.load(), OutcomeKind::kGuestReset);
  vcpu->request_park();
  EXPECT_TRUE(vcpu->wait_parked(hang_limit()));
  EXPECT_EQ(cpu_.settled.load(), 1);
  vcpu->resume();
  vcpu->request_park();
  EXPECT_TRUE(vcpu->wait_parked(hang_limit()));
  vcpu->request_stop();
  EXPECT_TRUE(vcpu->wait_stopped(hang_limit()));
  EXPECT_EQ(outcomes_.load(), 1);
}

TEST_F(VcpuThreadTest, destruction_stops_a_running_thread) {
  {
    auto vcpu = start();
    vcpu->resume();
    cpu_.await_inside();
  }
  EXPECT_EQ(cpu_.inside.load(), 0);
}

TEST_F(VcpuThreadTest, threads_carry_the_name_that_tools_look_for) {
  struct NameCpu final : GuestCpu {
    std::optional<Outcome> run_once() noexcept override {
      std::array<char, 16> buffer{};
      ::pthread_getname_np(::pthread_self(), buffer.data(), buffer.size());
      name = buffer.data();
      return Outcome{OutcomeKind::kGuestReset, ""};
    }
    std::optional<Outcome> settle() noexcept override { return std::nullopt; }
    void want_exit(bool) noexcept override {}
    std::string name;
  } cpu;
  std::atomic<bool> done{false};
  auto vcpu = std::move(*VcpuThread::start(31));
  vcpu->take_on(cpu, [&](const Outcome&) { done = true; });
  ASSERT_TRUE(vcpu->wait_ready());
  vcpu->resume();
  while (!done.load()) {
    std::this_thread::yield();
  }
  EXPECT_EQ(cpu.name, "mayfly_vcpu 31");
}

}  // namespace
}  // namespace mayfly
