#include "mayfly/confinement.h"

#include <string>
#include <utility>

#include "base/file.h"
#include "seccomp/policy/built_in.h"

namespace mayfly {

OrFailure<std::optional<Filters>> choose_filters(const Options& options) {
  if (options.no_seccomp) {
    return std::nullopt;
  }
  if constexpr (MAYFLY_SECCOMP_BY_DEFAULT == 0) {
    if (!options.seccomp_filter) {
      return std::nullopt;
    }
  }
  MAYFLY_TRY_ASSIGN(Filters own, built_in_filters());
  if (!options.seccomp_filter) {
    return own;
  }
  const auto read = [&options]() -> Result<Filters> {
    MAYFLY_TRY_ASSIGN(const std::string file,
                      read_file(*options.seccomp_filter, "seccomp filters", Filters::kMaxFile));
    return Filters::parse(file).map_error(
        [&options](const Error& error) { return error.within(*options.seccomp_filter); });
  };
  MAYFLY_TRY_ASSIGN(Filters filters, read().map_error(blame_flag("--seccomp-filter")));
  filters.complete(own);
  return filters;
}

std::function<Result<void>()> confinement(const std::optional<Filters>& filters, FilteredThread thread) {
  if (!filters) {
    return {};
  }
  return [&filters, thread] { return filters->confine(thread); };
}

}  // namespace mayfly
