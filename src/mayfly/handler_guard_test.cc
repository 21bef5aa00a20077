#include "mayfly/handler_guard.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "base/handover.h"

namespace mayfly {
namespace {

using ::testing::HasSubstr;

// Of the guard, the calls that end a monitor. A handler is the other end of a pipe: nobody knows its process.
class HandlerGuardTest : public ::testing::Test {
 protected:
  HandlerGuardTest() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK), 0);
    connection_ = UniqueFd(ends[0]);
    handler_ = UniqueFd(ends[1]);
    // As in a monitor, where no thread but the guard hears of them.
    sigset_t ends_monitor;
    ::sigemptyset(&ends_monitor);
    ::sigaddset(&ends_monitor, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &ends_monitor, nullptr);
  }

  Result<std::unique_ptr<HandlerGuard>> start(const UniqueFd& userfault,
                                              std::function<Result<void>()> confine = {}) {
    return HandlerGuard::start(userfault, memory_, std::move(connection_),
                               {.end_with = [this](Outcome how) { ended_.give(std::move(how)); },
                                .end_at_once =
                                    [this] {
                                      if (!ended_at_once_.exchange(true)) {
                                        at_once_.give(true);
                                      }
                                    },
                                .confine = std::move(confine)});
  }

  // Watches the memory, whose pages are all missing. Nothing, and the case is skipped, where a process may
  // not have one.
  std::optional<UniqueFd> watch_memory() {
    UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
    uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
    if (!fd || ::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
      [] { GTEST_SKIP() << "this host lets nobody watch memory"; }();
      return std::nullopt;
    }
    for (const MemoryRegion& region : memory_.regions()) {
      uffdio_register all{};
      // SAFETY: the number is for the kernel; nothing is accessed through it.
      all.range = {reinterpret_cast<std::uintptr_t>(region.host), region.range.size()};
      all.mode = UFFDIO_REGISTER_MODE_MISSING;
      EXPECT_EQ(::ioctl(fd.get(), UFFDIO_REGISTER, &all), 0);
    }
    return fd;
  }

  // What a load reads of guest memory.
  std::uint64_t read_memory() const {
    std::uint64_t value = 1;
    EXPECT_TRUE(memory_.read(GuestAddress(4096), std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }

  GuestMemory memory_ =
      GuestMemory::create(std::array{*GuestRange::make(GuestAddress(0), 1U << 20)}, Backing::kAnonymous)
          .value();
  UniqueFd connection_;
  UniqueFd handler_;
  Handover<Outcome> ended_;
  std::atomic<bool> ended_at_once_ = false;
  Handover<bool> at_once_;
};

// Looks like one whose pages nobody brings, and cannot be told to stop watching.
UniqueFd stubborn_userfault() {
  return UniqueFd(::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
}

TEST_F(HandlerGuardTest, a_load_that_has_its_pages_ends_well) {
  const auto guard = start(stubborn_userfault());
  ASSERT_TRUE(guard.has_value()) << guard.error().message();
  EXPECT_TRUE((*guard)->finish_load());
}

TEST_F(HandlerGuardTest, a_thread_that_cannot_be_confined_is_none) {
  const auto guard = start(stubborn_userfault(),
                           []() -> Result<void> { return fail(ErrorCode::kUnsupported, "no filter"); });
  ASSERT_FALSE(guard.has_value());
  EXPECT_THAT(guard.error().message(), HasSubstr("no filter"));
}

TEST_F(HandlerGuardTest, a_request_to_end_gives_up_a_load_and_who_waits_for_a_page_goes_on) {
  const auto userfault = watch_memory();
  if (!userfault) {
    return;
  }
  const auto guard = start(*userfault);
  ASSERT_TRUE(guard.has_value()) << guard.error().message();
  std::thread load([this] { EXPECT_EQ(read_memory(), 0U); });
  ::kill(::getpid(), SIGTERM);
  load.join();
  const Outcome how = ended_.take();
  EXPECT_EQ(how.kind, OutcomeKind::kStopped);
  EXPECT_EQ(how.detail, "SIGTERM");
  for (int i = 0; i < 2; ++i) {
    const auto finished = (*guard)->finish_load();
    ASSERT_FALSE(finished.has_value());
    EXPECT_THAT(finished.error().message(), HasSubstr("it has not brought the pages for it yet"));
  }
}

TEST_F(HandlerGuardTest, a_handler_that_is_gone_gives_up_a_load) {
  const auto userfault = watch_memory();
  if (!userfault) {
    return;
  }
  const auto guard = start(*userfault);
  ASSERT_TRUE(guard.has_value()) << guard.error().message();
  handler_.reset();
  EXPECT_EQ(read_memory(), 0U);
  const auto finished = (*guard)->finish_load();
  ASSERT_FALSE(finished.has_value());
  EXPECT_THAT(finished.error().message(), HasSubstr("it has ended, and guest memory is missing"));
}

TEST_F(HandlerGuardTest, a_handler_that_is_gone_ends_a_monitor_that_is_past_its_load) {
  const auto guard = start(stubborn_userfault());
  ASSERT_TRUE(guard.has_value()) << guard.error().message();
  ASSERT_TRUE((*guard)->finish_load());
  handler_.reset();
  const Outcome how = ended_.take();
  EXPECT_EQ(how.kind, OutcomeKind::kVcpuFailed);
  EXPECT_THAT(how.detail, HasSubstr("the page fault handler has ended"));
}

TEST_F(HandlerGuardTest, a_load_whose_memory_stays_watched_is_not_given_up_and_the_monitor_ends) {
  const auto guard = start(stubborn_userfault());
  ASSERT_TRUE(guard.has_value()) << guard.error().message();
  handler_.reset();
  EXPECT_EQ(ended_.take().kind, OutcomeKind::kVcpuFailed);
  EXPECT_TRUE((*guard)->finish_load());
}

TEST_F(HandlerGuardTest, an_end_that_does_not_come_is_brought_about) {
  const auto guard = start(stubborn_userfault());
  ASSERT_TRUE(guard.has_value()) << guard.error().message();
  ASSERT_TRUE((*guard)->finish_load());
  EXPECT_FALSE(ended_at_once_);
  (*guard)->expect_end();
  EXPECT_TRUE(at_once_.take());
}

}  // namespace
}  // namespace mayfly
