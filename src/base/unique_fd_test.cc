#include "base/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

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
  const UniqueFd copy = file.duplicate().value();
  const UniqueFd event = make_eventfd().value();
  for (const UniqueFd* fd : {&file, &copy, &event}) {
    EXPECT_TRUE((::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC) != 0);
  }
}

TEST(UniqueFd, a_file_that_cannot_be_opened_is_named_with_its_role) {
  const auto opened = open_file("/nonexistent/kernel", O_RDONLY, "kernel image");
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().message(),
            "open kernel image /nonexistent/kernel: No such file or directory (ENOENT)");
}

}  // namespace
}  // namespace mayfly
