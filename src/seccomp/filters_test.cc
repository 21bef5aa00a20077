#include "seccomp/filters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "seccomp/format.h"

namespace mayfly {
namespace {

using testing::HasSubstr;

std::string words(const std::vector<std::uint32_t>& values) {
  std::string text(values.size() * sizeof(std::uint32_t), '\0');
  std::memcpy(text.data(), values.data(), text.size());
  return text;
}

std::string program_of(const std::vector<sock_filter>& instructions) {
  std::string text = words({static_cast<std::uint32_t>(instructions.size())});
  for (const std::byte byte : std::as_bytes(std::span(instructions))) {
    text += static_cast<char>(byte);
  }
  return text;
}

std::string file_of(const std::vector<sock_filter>& monitor, const std::vector<sock_filter>& api,
                    const std::vector<sock_filter>& vcpu, const std::vector<sock_filter>& snapshot,
                    const std::vector<sock_filter>& guard = {}) {
  return std::string(seccomp_format::kMagic) +
         words({seccomp_format::kVersion, seccomp_format::kArchitecture}) + program_of(monitor) +
         program_of(api) + program_of(vcpu) + program_of(snapshot) + program_of(guard);
}

const std::vector<sock_filter> kAllow = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};

// Answers the call `number` with `error` if its first argument is `value`.
std::vector<sock_filter> refuse(std::uint32_t number, std::uint32_t value, std::uint32_t error) {
  return {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3),
          BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),
          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
}

// The exit code of a child that does this.
int in_child(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(body());
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(Filters, a_file_that_is_none_or_damaged_is_refused_by_what_is_wrong) {
  const std::string good = file_of(kAllow, kAllow, kAllow, kAllow, kAllow);
  ASSERT_TRUE(Filters::parse(good).has_value());
  const auto refusal = [](const std::string& file) {
    const auto filters = Filters::parse(file);
    return filters ? "none" : filters.error().message();
  };
  EXPECT_THAT(refusal(""), HasSubstr("mayfly-seccomp"));
  EXPECT_THAT(refusal("{\"thread\": \"api\"}"), HasSubstr("mayfly-seccomp"));
  EXPECT_THAT(refusal(good + "x"), HasSubstr("more behind"));
  const std::string magic(seccomp_format::kMagic);
  EXPECT_THAT(refusal(magic + words({2, seccomp_format::kArchitecture})), HasSubstr("version"));
  EXPECT_THAT(refusal(magic + words({3, 1})), HasSubstr("processor"));
  for (const std::uint32_t count : {0U, 4097U, UINT32_MAX}) {
    EXPECT_THAT(refusal(magic + words({3, seccomp_format::kArchitecture, count})), HasSubstr("length"));
  }
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(Filters::parse(good.substr(0, size)).has_value()) << size;
  }
}

TEST(Filters, each_thread_gets_its_own_and_one_that_gives_no_privileges_back) {
  const auto filters = Filters::parse(file_of(kAllow, refuse(SYS_getppid, 7, 123), kAllow,
                                              refuse(SYS_getppid, 7, 124), refuse(SYS_getppid, 7, 125)));
  ASSERT_TRUE(filters.has_value());
  for (const auto& [thread, error] : {std::pair(FilteredThread::kMonitor, 0),
                                      {FilteredThread::kApi, 123},
                                      {FilteredThread::kVcpu, 0},
                                      {FilteredThread::kSnapshot, 124},
                                      {FilteredThread::kGuard, 125}}) {
    const int seen = in_child([&filters, which = thread] {
      const bool confined = filters->confine(which).has_value() &&
                            ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 &&
                            ::prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == SECCOMP_MODE_FILTER;
      errno = 0;
      ::syscall(SYS_getppid, 7);
      return confined ? errno : 99;
    });
    EXPECT_EQ(seen, error) << name_of(thread);
  }
}

TEST(Filters, the_own_process_is_the_one_that_parses) {
  const std::string file = file_of(refuse(SYS_getppid, seccomp_format::kOwnProcess, 123), kAllow, kAllow, {});
  const int seen = in_child([&file] {
    const auto filters = Filters::parse(file);
    if (!filters || !filters->confine(FilteredThread::kMonitor)) {
      return 99;
    }
    errno = 0;
    ::syscall(SYS_getppid, ::getpid() + 1);
    const bool other_is_let_through = errno == 0;
    ::syscall(SYS_getppid, ::getpid());
    return other_is_let_through ? errno : 98;
  });
  EXPECT_EQ(seen, 123);
}

// What the call that refuse() is about comes to in a child that is confined as `thread`; 99 where it cannot
// be.
int seen_by(FilteredThread thread, const Filters& filters) {
  return in_child([&filters, thread] {
    const bool confined = filters.confine(thread).has_value();
    errno = 0;
    ::syscall(SYS_getppid, 7);
    return confined ? errno : 99;
  });
}

TEST(Filters, who_has_none_for_a_thread_that_came_later_takes_another_and_leaves_the_rest) {
  const auto own = Filters::parse(file_of(refuse(SYS_getppid, 7, 1), kAllow, kAllow,
                                          refuse(SYS_getppid, 7, 123), refuse(SYS_getppid, 7, 124)));
  auto lacking = Filters::parse(file_of(kAllow, kAllow, kAllow, {}));
  auto whole = Filters::parse(
      file_of(kAllow, kAllow, kAllow, refuse(SYS_getppid, 7, 125), refuse(SYS_getppid, 7, 126)));
  ASSERT_TRUE(own && lacking && whole);
  for (const FilteredThread thread : {FilteredThread::kSnapshot, FilteredThread::kGuard}) {
    EXPECT_EQ(seen_by(thread, *lacking), 99) << "without a filter the thread does not run";
  }
  lacking->complete(*own);
  whole->complete(*own);
  EXPECT_EQ(seen_by(FilteredThread::kSnapshot, *lacking), 123);
  EXPECT_EQ(seen_by(FilteredThread::kGuard, *lacking), 124);
  EXPECT_EQ(seen_by(FilteredThread::kSnapshot, *whole), 125);
  EXPECT_EQ(seen_by(FilteredThread::kGuard, *whole), 126);
  EXPECT_EQ(seen_by(FilteredThread::kMonitor, *lacking), 0);
}

TEST(Filters, a_program_that_the_kernel_refuses_is_an_error_that_names_the_thread) {
  const auto filters = Filters::parse(file_of(kAllow, kAllow, {BPF_STMT(BPF_LD | BPF_IMM, 0)}, {}));
  ASSERT_TRUE(filters.has_value());
  const int seen = in_child([&filters] {
    const auto confined = filters->confine(FilteredThread::kVcpu);
    return !confined && confined.error().message().find("thread vcpu") != std::string::npos ? 0 : 1;
  });
  EXPECT_EQ(seen, 0);
}

}  // namespace
}  // namespace mayfly
