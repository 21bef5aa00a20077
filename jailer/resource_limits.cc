#include "resource_limits.h"

#include <cerrno>

namespace mayfly::jail {

std::vector<Limit> jail_limits(const Options& options) {
  std::vector<Limit> limits = {
      {.resource = RLIMIT_NOFILE, .name = "no-file", .value = options.no_file},
      {.resource = RLIMIT_CORE, .name = "core", .value = 0},
  };
  if (options.fsize) {
    limits.push_back({.resource = RLIMIT_FSIZE, .name = "fsize", .value = *options.fsize});
  }
  return limits;
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
