#include "vmm/outcome.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <string>

namespace mayfly {
namespace {

struct Case {
  OutcomeKind kind;
  int exit_code;
  const char* name;
};
constexpr std::array kCases = {
    Case{OutcomeKind::kGuestReset, 0, "guest reset"}, Case{OutcomeKind::kGuestPowerOff, 0, "guest power-off"},
    Case{OutcomeKind::kStopped, 0, "stopped"},        Case{OutcomeKind::kTripleFault, 1, "triple fault"},
    Case{OutcomeKind::kGuestCrash, 1, "guest crash"}, Case{OutcomeKind::kVcpuFailed, 1, "vCPU failed"},
};

TEST(Outcome, every_kind_has_its_documented_exit_code_and_a_name_of_its_own) {
  std::set<std::string> names;
  for (const Case& c : kCases) {
    EXPECT_EQ(exit_code_of(c.kind), c.exit_code) << c.name;
    EXPECT_STREQ(name_of(c.kind), c.name);
    names.insert(c.name);
  }
  EXPECT_EQ(names.size(), kCases.size());
}

TEST(Outcome, a_kind_that_is_none_counts_as_a_failure) {
  const auto none = static_cast<OutcomeKind>(255);
  EXPECT_EQ(exit_code_of(none), 1);
  EXPECT_STREQ(name_of(none), "unknown");
}

}  // namespace
}  // namespace mayfly
