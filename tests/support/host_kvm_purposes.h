// What HostKvm is started for, as the parameter of tests that hold for either.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "vmm/host_kvm.h"

namespace mayfly::testing {

inline auto both_purposes() {
  return ::testing::Values(HostKvm::Purpose::kTake, HostKvm::Purpose::kUse);
}

inline std::string purpose_name(const ::testing::TestParamInfo<HostKvm::Purpose>& purpose) {
  return purpose.param == HostKvm::Purpose::kTake ? "take" : "use";
}

}  // namespace mayfly::testing
