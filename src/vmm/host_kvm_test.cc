#include "vmm/host_kvm.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/syscall.h>

#include <cerrno>
#include <csignal>
#include <optional>

#include "support/poor_host.h"

namespace mayfly {
namespace {

bool is_blocked(int number) {
  sigset_t now;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &now);
  return ::sigismember(&now, number) == 1;
}

TEST(HostKvm, without_a_start_there_is_nothing) {
  HostKvm host;
  EXPECT_FALSE(host.take(nullptr).has_value());
  EXPECT_FALSE(host.take_supported(nullptr).has_value());
}

TEST(HostKvm, without_a_start_a_job_is_not_done) {
  HostKvm host;
  bool done = false;
  EXPECT_FALSE(host.use([&](auto&&...) { done = true; }));
  EXPECT_FALSE(host.take(nullptr).has_value());
  EXPECT_FALSE(done);
}

TEST(HostKvm, its_end_waits_for_what_nobody_has_taken) {
  for (const auto purpose : {HostKvm::Purpose::kTake, HostKvm::Purpose::kUse}) {
    HostKvm host;
    host.start(purpose);
    host.start(purpose);
  }
}

TEST(HostKvm, who_starts_it_takes_the_same_signals_as_before) {
  HostKvm host;
  ASSERT_FALSE(is_blocked(SIGUSR1));
  host.start();
  EXPECT_FALSE(is_blocked(SIGUSR1));
}

TEST(HostKvm, where_kvm_cannot_be_opened_there_is_nothing) {
  testing::where_refused(SYS_openat, EACCES, [] {
    HostKvm host;
    host.start(HostKvm::Purpose::kUse);
    bool had_none = false;
    EXPECT_TRUE(host.use([&](std::optional<OpenKvm> opened, auto&) { had_none = !opened.has_value(); }));
    EXPECT_FALSE(host.take(nullptr).has_value());
    EXPECT_FALSE(host.take_supported(nullptr).has_value());
    host.end();
    EXPECT_TRUE(had_none);
  });
}

TEST(HostKvm, its_end_may_come_at_any_time_and_twice) {
  HostKvm host;
  host.end();
  host.end();
  host.start(HostKvm::Purpose::kUse);
  host.end();
  host.end();
  EXPECT_FALSE(host.take(nullptr).has_value());
}

TEST(HostKvm, where_no_thread_is_to_be_had_there_is_nothing) {
  testing::where_refused(SYS_clone3, EAGAIN, [] {
    HostKvm host;
    host.start();
    EXPECT_FALSE(is_blocked(SIGUSR1));
    EXPECT_FALSE(host.take(nullptr).has_value());
    EXPECT_FALSE(host.take_supported(nullptr).has_value());
  });
}

}  // namespace
}  // namespace mayfly
