#include "base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <utility>

namespace mayfly {
namespace {

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

TEST(UniqueFd, a_descriptor_is_closed_once_when_its_last_owner_goes) {
  int raw = -1;
  {
    UniqueFd first = make_eventfd().value();
    raw = first.get();
    UniqueFd second = std::move(first);
    EXPECT_FALSE(first.valid());  // NOLINT(bugprone-use-after-move): the moved-from state is what is tested
    EXPECT_TRUE(is_open(raw));
    first = std::move(second);
    EXPECT_TRUE(is_open(raw));
  }
  EXPECT_FALSE(is_open(raw));
}

TEST(UniqueFd, assignment_closes_what_was_held) {
  UniqueFd held = make_eventfd().value();
  const int raw = held.get();
  held = make_eventfd().value();
  EXPECT_TRUE(held.get() == raw || !is_open(raw));
}

TEST(UniqueFd, released_descriptors_stay_open) {
  UniqueFd owner = make_eventfd().value();
  UniqueFd again(owner.release());
  EXPECT_FALSE(owner.valid());
  EXPECT_TRUE(is_open(again.get()));
}

TEST(UniqueFd, every_factory_sets_close_on_exec) {
  const UniqueFd file = open_file("/dev/null", O_RDONLY, "null device").value();
  const UniqueFd event = make_eventfd().value();
  const UniqueFd copy = duplicate(file, "null device").value();
  for (const UniqueFd* fd : {&file, &event, &copy}) {
    EXPECT_TRUE((::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC) != 0);
  }
}

TEST(UniqueFd, a_duplicate_is_of_the_same_file_and_stays_when_the_first_goes) {
  std::optional<UniqueFd> file = open_file("/dev/null", O_RDONLY, "null device").value();
  const UniqueFd copy = duplicate(*file, "null device").value();
  EXPECT_NE(copy.get(), file->get());
  file.reset();
  EXPECT_TRUE(is_open(copy.get()));
  const auto none = duplicate(UniqueFd(), "null device");
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().message(), "duplicate the descriptor of null device: Bad file descriptor (EBADF)");
}

TEST(UniqueFd, a_file_that_cannot_be_opened_is_named_with_its_role) {
  const auto opened = open_file("/nonexistent/kernel", O_RDONLY, "kernel image");
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().message(),
            "open kernel image /nonexistent/kernel: No such file or directory (ENOENT)");
}

TEST(UniqueFd, all_descriptors_but_those_that_are_kept_can_be_closed) {
  const UniqueFd first = make_eventfd().value();
  const UniqueFd second = make_eventfd().value();
  const UniqueFd third = make_eventfd().value();
  const pid_t child = ::fork();
  if (child == 0) {
    const std::array kept = {1, second.get()};
    const bool closed = close_all_but(kept).has_value();
    ::_exit((closed ? 1 : 0) | (is_open(0) ? 2 : 0) | (is_open(1) ? 4 : 0) | (is_open(first.get()) ? 8 : 0) |
            (is_open(second.get()) ? 16 : 0) | (is_open(third.get()) ? 32 : 0));
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 1 | 4 | 16);
}

// In a process of its own: what comes of it when `closed` are closed. Its exit code is a mask of the
// descriptors that then stand where they should.
int standard_descriptors_after(std::initializer_list<int> closed) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int fd : closed) {
      ::close(fd);
    }
    int mask = ensure_standard_descriptors() ? 8 : 0;
    for (int fd = 0; fd <= 2; ++fd) {
      mask |= is_open(fd) ? 1 << fd : 0;
    }
    const UniqueFd next = make_eventfd().value();
    ::_exit(next.get() > 2 ? mask : 64);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(StandardDescriptors, whichever_is_closed_is_opened_so_that_nothing_else_takes_its_place) {
  EXPECT_EQ(standard_descriptors_after({}), 15);
  EXPECT_EQ(standard_descriptors_after({0}), 15);
  EXPECT_EQ(standard_descriptors_after({1}), 15);
  EXPECT_EQ(standard_descriptors_after({2}), 15);
  EXPECT_EQ(standard_descriptors_after({0, 2}), 15);
  EXPECT_EQ(standard_descriptors_after({0, 1, 2}), 15);
}

}  // namespace
}  // namespace mayfly
