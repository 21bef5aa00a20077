#include "privileges.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace mayfly::jail {
namespace {

// Whether `act` says yes in a process of its own, which may give up what it has.
bool holds(const std::function<bool()>& act) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(act() ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status == 0;
}

// By the system call, as the C library's function is a whole process's, and a sanitizer has a thread of its
// own.
TEST(Privileges, nobody_can_go_back_from_none) {
  EXPECT_TRUE(holds([] {
    return drop_capabilities() && forbid_new_privileges() && ::syscall(SYS_setuid, ::getuid() + 1) != 0;
  }));
  EXPECT_TRUE(holds([] { return forbid_new_privileges() && ::prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) != 0; }));
}

TEST(Privileges, a_user_that_one_may_not_become_is_refused) {
  EXPECT_TRUE(holds([] {
    return drop_capabilities() && !become(::getuid() + 1, ::getgid(), true) &&
           become(::getuid(), ::getgid(), true);
  }));
}

TEST(Privileges, the_bounding_set_is_emptied_or_the_refusal_told) {
  EXPECT_TRUE(holds([] {
    const auto emptied = empty_bounding_set();
    const bool is_empty = ::prctl(PR_CAPBSET_READ, 0, 0, 0, 0) == 0;
    return emptied ? is_empty : emptied.error().message().find("bounding set") != std::string::npos;
  }));
}

}  // namespace
}  // namespace mayfly::jail
