#include "resource_limits.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>

namespace mayfly::jail {

std::vector<Limit> jail_limits(const Options& options) {
  // core(5): a limit of 0 does not stop a core_pattern that is a program, which would be piped the guest's
  // memory; of 1 does, and is too short for a file. Where the hard limit is 0 it stays.
  rlimit core{};
  const std::uint64_t hard = ::getrlimit(RLIMIT_CORE, &core) == 0 ? core.rlim_max : 0;
  std::vector<Limit> limits = {
      {.resource = RLIMIT_NOFILE, .name = "no-file", .value = options.no_file},
      {.resource = RLIMIT_CORE, .name = "core", .value = std::min<std::uint64_t>(hard, 1)},
  };
  if (options.fsize) {
    limits.push_back({.resource = RLIMIT_FSIZE, .name = "fsize", .value = *options.fsize});
  }
  return limits;
}

Result<void> check_limit(const Limit& limit) {
  rlimit now{};
  if (::getrlimit(limit.resource, &now) != 0) {
    return fail_errno(errno, std::string("look at the resource limit ") + limit.name);
  }
  return limit.value > now.rlim_max ? set_limit(limit) : Result<void>();
}

Result<void> set_limit(const Limit& limit) {
  const rlimit both{.rlim_cur = limit.value, .rlim_max = limit.value};
  if (::setrlimit(limit.resource, &both) == 0) {
    return {};
  }
  const int error = errno;
  rlimit now{};
  ::getrlimit(limit.resource, &now);
  const std::string doing =
      std::string("set the resource limit ").append(limit.name).append("=") + std::to_string(limit.value);
  return fail_errno(
      error, error == EPERM ? doing + " above the hard limit here, " + std::to_string(now.rlim_max) : doing);
}

}  // namespace mayfly::jail
