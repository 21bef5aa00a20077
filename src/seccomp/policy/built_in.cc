#include "seccomp/policy/built_in.h"

#include <array>

namespace mayfly {
namespace {

constexpr auto kBuiltIn = std::to_array<char>({
#include <mayfly_policy/built_in.inc>
});

}  // namespace

Result<Filters> built_in_filters() {
  return Filters::parse({kBuiltIn.data(), kBuiltIn.size()});
}

}  // namespace mayfly
