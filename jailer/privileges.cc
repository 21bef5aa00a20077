#include "privileges.h"

#include <linux/capability.h>
#include <linux/keyctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

namespace mayfly::jail {
namespace {

// More than there are; the kernel says where they end.
constexpr unsigned long kMaxCapabilities = 64;

using CapabilityData = std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3>;

bool is_empty(const CapabilityData& data) {
  for (const __user_cap_data_struct& part : data) {
    if ((part.effective | part.permitted | part.inheritable) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace

Result<void> leave_keyring() {
  if (::syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr) < 0 && errno != ENOSYS) {
    return fail_errno(errno, "leave the caller's keyring");
  }
  return {};
}

Result<void> empty_bounding_set() {
  for (unsigned long capability = 0; capability < kMaxCapabilities; ++capability) {
    if (::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0) {
      if (errno == EINVAL && capability > 0) {
        break;  // there is none of that number
      }
      return fail_errno(errno, "take capability " + std::to_string(capability) + " out of the bounding set");
    }
  }
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0) {
    return fail_errno(errno, "empty the ambient set of capabilities");
  }
  return {};
}

Result<void> become(uid_t user, gid_t group, bool keep_groups) {
  const std::string doing = "become user " + std::to_string(user) + ", group " + std::to_string(group);
  if (!keep_groups && ::syscall(SYS_setgroups, 0, nullptr) != 0) {
    return fail_errno(errno, doing + ": drop the supplementary groups");
  }
  if (::syscall(SYS_setresgid, group, group, group) != 0) {
    return fail_errno(errno, doing + ": set the group");
  }
  if (::syscall(SYS_setresuid, user, user, user) != 0) {
    return fail_errno(errno, doing + ": set the user");
  }
  std::array<uid_t, 3> users{};
  std::array<gid_t, 3> groups{};
  if (::syscall(SYS_getresuid, &users[0], &users[1], &users[2]) != 0 ||
      ::syscall(SYS_getresgid, &groups[0], &groups[1], &groups[2]) != 0) {
    return fail_errno(errno, doing + ": read them back");
  }
  if (users != std::array{user, user, user} || groups != std::array{group, group, group}) {
    return fail(ErrorCode::kInternal, doing + ": they read back as others");
  }
  return {};
}

Result<void> drop_capabilities() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  CapabilityData data{};
  if (::syscall(SYS_capset, &header, data.data()) != 0) {
    return fail_errno(errno, "drop all capabilities");
  }
  if (::syscall(SYS_capget, &header, data.data()) != 0) {
    return fail_errno(errno, "read the capabilities back");
  }
  if (!is_empty(data)) {
    return fail(ErrorCode::kInternal, "drop all capabilities: some are left");
  }
  return {};
}

Result<void> forbid_new_privileges() {
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1) {
    return fail_errno(errno, "set no-new-privs");
  }
  return {};
}

}  // namespace mayfly::jail
