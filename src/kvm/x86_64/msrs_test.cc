#include "kvm/x86_64/msrs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace mayfly::x86_64 {
namespace {

using testing::IsEmpty;

// A vCPU that stops at the first register it does not know, as KVM_SET_MSRS does.
struct FakeVcpu {
  std::vector<std::uint32_t> unknown;
  std::vector<std::uint32_t> set;
  int calls = 0;

  Result<std::size_t> operator()(std::span<const kvm_msr_entry> entries) {
    ++calls;
    std::size_t count = 0;
    for (const kvm_msr_entry& entry : entries) {
      if (std::find(unknown.begin(), unknown.end(), entry.index) != unknown.end()) {
        break;
      }
      set.push_back(entry.index);
      ++count;
    }
    return count;
  }
};

std::vector<std::uint32_t> boot_indices() {
  std::vector<std::uint32_t> indices;
  for (const kvm_msr_entry& entry : boot_msrs()) {
    indices.push_back(entry.index);
  }
  return indices;
}

TEST(BootMsrs, hold_what_firmware_leaves_behind) {
  const auto value = [](std::uint32_t index) -> std::uint64_t {
    for (const kvm_msr_entry& entry : boot_msrs()) {
      if (entry.index == index) {
        return entry.data;
      }
    }
    ADD_FAILURE() << "no MSR " << index;
    return 0;
  };
  for (const std::uint32_t index :
       {0x10U, 0x174U, 0x175U, 0x176U, 0xc0000081U, 0xc0000082U, 0xc0000083U, 0xc0000084U, 0xc0000102U}) {
    EXPECT_EQ(value(index), 0U);
  }
  EXPECT_EQ(value(0x1a0), 1U);
  EXPECT_EQ(value(0x2ff), 0x806U);
  EXPECT_EQ(boot_msrs().size(), 11U);
}

TEST(BootMsrs, are_all_set_in_one_call_where_none_is_refused) {
  FakeVcpu vcpu;
  EXPECT_THAT(set_msrs_that_exist(boot_msrs(), std::ref(vcpu)).value(), IsEmpty());
  EXPECT_EQ(vcpu.set, boot_indices());
  EXPECT_EQ(vcpu.calls, 1);
}

TEST(BootMsrs, each_one_that_is_refused_is_named_and_all_others_are_set) {
  const auto all = boot_indices();
  for (std::uint32_t subset = 0; subset < (1U << all.size()); ++subset) {
    FakeVcpu vcpu;
    std::vector<std::uint32_t> rest;
    for (std::size_t i = 0; i < all.size(); ++i) {
      (((subset >> i) & 1) != 0 ? vcpu.unknown : rest).push_back(all[i]);
    }
    ASSERT_EQ(set_msrs_that_exist(boot_msrs(), std::ref(vcpu)).value(), vcpu.unknown);
    ASSERT_EQ(vcpu.set, rest);
    ASSERT_LE(vcpu.calls, 1 + static_cast<int>(vcpu.unknown.size()));
  }
}

TEST(BootMsrs, an_error_of_the_call_itself_is_handed_on) {
  const auto failing = [](std::span<const kvm_msr_entry>) -> Result<std::size_t> {
    return fail_errno(EFAULT, "set");
  };
  EXPECT_EQ(set_msrs_that_exist(boot_msrs(), failing).error().os_errno(), EFAULT);
}

TEST(BootMsrs, an_empty_list_makes_no_call) {
  FakeVcpu vcpu;
  EXPECT_TRUE(set_msrs_that_exist({}, std::ref(vcpu)).has_value());
  EXPECT_EQ(vcpu.calls, 0);
}

TEST(MsrName, says_the_manuals_name_and_the_number) {
  EXPECT_EQ(msr_name(0x2ff), "IA32_MTRR_DEF_TYPE (0x2ff)");
  EXPECT_EQ(msr_name(0xc0000082), "LSTAR (0xc0000082)");
  EXPECT_EQ(msr_name(0x12345), "0x12345");
  for (const kvm_msr_entry& entry : boot_msrs()) {
    EXPECT_NE(msr_name(entry.index).find('('), std::string::npos);
  }
}

}  // namespace
}  // namespace mayfly::x86_64
