#include "landlock.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace mayfly::jail {
namespace {

// The kernel's interface, whose newer parts the headers of Debian 12 lack (linux/landlock.h).
constexpr std::uint64_t kExecute = 1U << 0U;
constexpr std::uint64_t kWriteFile = 1U << 1U;
constexpr std::uint64_t kReadFile = 1U << 2U;
constexpr std::uint64_t kReadDir = 1U << 3U;
constexpr std::uint64_t kRemoveFile = 1U << 5U;
constexpr std::uint64_t kMakeReg = 1U << 8U;
constexpr std::uint64_t kMakeSock = 1U << 9U;
constexpr std::uint64_t kTruncate = 1U << 14U;  // version 3
constexpr std::uint64_t kIoctlDev = 1U << 15U;  // version 5

constexpr std::uint64_t kFilesOf1 = (1U << 13U) - 1;  // up to MAKE_SYM
constexpr std::uint64_t kRefer = 1U << 13U;           // version 2
constexpr std::uint64_t kTcp = 3;                     // BIND_TCP, CONNECT_TCP; version 4
constexpr std::uint64_t kScopes = 3;                  // ABSTRACT_UNIX_SOCKET, SIGNAL; version 6

constexpr unsigned kCreateVersion = 1;  // LANDLOCK_CREATE_RULESET_VERSION
constexpr int kRulePathBeneath = 1;     // LANDLOCK_RULE_PATH_BENEATH

struct PathBeneath {  // landlock_path_beneath_attr
  std::uint64_t allowed;
  std::int32_t parent;
} __attribute__((packed));

Result<void> allow(const UniqueFd& ruleset, const std::string& path, std::uint64_t rights) {
  MAYFLY_TRY_ASSIGN(const UniqueFd file, open_file(path, O_PATH, "for Landlock"));
  const PathBeneath rule{.allowed = rights, .parent = file.get()};
  if (::syscall(SYS_landlock_add_rule, ruleset.get(), kRulePathBeneath, &rule, 0) != 0) {
    return fail_errno(errno, "have Landlock allow " + path);
  }
  return {};
}

}  // namespace

int landlock_version() {
  const long version = ::syscall(SYS_landlock_create_ruleset, nullptr, 0, kCreateVersion);
  return version > 0 ? static_cast<int>(version) : 0;
}

LandlockRights landlock_rights(int version) {
  LandlockRights rights{.files = kFilesOf1, .net = 0, .scoped = 0};
  rights.files |= version >= 2 ? kRefer : 0;
  rights.files |= version >= 3 ? kTruncate : 0;
  rights.files |= version >= 5 ? kIoctlDev : 0;
  rights.net = version >= 4 ? kTcp : 0;
  rights.scoped = version >= 6 ? kScopes : 0;
  return rights;
}

std::uint64_t landlock_jail_rights(int version) {
  return landlock_rights(version).files &
         (kWriteFile | kReadFile | kReadDir | kRemoveFile | kMakeReg | kMakeSock | kTruncate | kIoctlDev);
}

std::uint64_t landlock_monitor_rights() {
  return kExecute;
}

Result<void> confine(int version, const std::string& root, const std::string& monitor) {
  // A kernel that knows less takes the whole structure as long as what it does not know is 0.
  const LandlockRights rights = landlock_rights(version);
  const UniqueFd ruleset(static_cast<int>(::syscall(SYS_landlock_create_ruleset, &rights, sizeof rights, 0)));
  if (!ruleset) {
    return fail_errno(errno, "make a Landlock ruleset");
  }
  MAYFLY_TRY(allow(ruleset, root, landlock_jail_rights(version)));
  MAYFLY_TRY(allow(ruleset, monitor, landlock_monitor_rights()));
  if (::syscall(SYS_landlock_restrict_self, ruleset.get(), 0) != 0) {
    return fail_errno(errno, "confine this thread by Landlock");
  }
  return {};
}

}  // namespace mayfly::jail
