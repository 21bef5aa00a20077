#include "kvm/x86_64/saved_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace mayfly::x86_64 {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

kvm_cpuid_entry2 entry(std::uint32_t leaf, std::uint32_t subleaf = 0) {
  kvm_cpuid_entry2 made{};
  made.function = leaf;
  made.index = subleaf;
  made.flags = leaf == 7 || leaf == 0xd ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
  return made;
}

kvm_cpuid_entry2 vendor(std::string_view name) {
  kvm_cpuid_entry2 made = entry(0);
  std::memcpy(&made.ebx, name.data(), 4);
  std::memcpy(&made.edx, name.data() + 4, 4);
  std::memcpy(&made.ecx, name.data() + 8, 4);
  return made;
}

std::string why_not(std::span<const kvm_cpuid_entry2> guest, std::span<const kvm_cpuid_entry2> host) {
  const auto fits = check_cpuid_fits(guest, host);
  return fits ? "" : fits.error().message();
}

TEST(MsrsToSave, time_is_first_and_its_deadline_last_and_each_comes_once) {
  const std::array<std::uint32_t, 5> listed = {0x6e0, 0xc0000080, 0x10, 0x174, 0x10};
  const auto all = msrs_to_save(listed);
  ASSERT_GE(all.size(), 5U);
  EXPECT_EQ(all.front(), 0x10U);
  EXPECT_EQ(all.back(), 0x6e0U);
  EXPECT_EQ(std::count(all.begin(), all.end(), 0x10U), 1);
  EXPECT_THAT(all, Contains(0xc0000080U));
}

TEST(MsrsToSave, memory_types_are_added_and_what_no_guest_has_is_left_out) {
  const std::array<std::uint32_t, 4> listed = {0x480, 0x40000000, 0xc1, 0xc0010117};
  const auto all = msrs_to_save(listed);
  for (const std::uint32_t index : {0x2ffU, 0x200U, 0x20fU, 0x250U, 0x26fU}) {
    EXPECT_THAT(all, Contains(index));
  }
  for (const std::uint32_t index : listed) {
    EXPECT_THAT(all, Not(Contains(index)));
  }
}

TEST(MsrsToSave, there_are_never_more_than_a_file_holds) {
  std::vector<std::uint32_t> listed;
  for (std::uint32_t index = 0; index < 2 * kMaxSavedMsrs; ++index) {
    listed.push_back(0xd0000000 + index);
  }
  EXPECT_EQ(msrs_to_save(listed).size(), kMaxSavedMsrs);
}

TEST(CpuidFits, another_vendor_is_named) {
  const std::array guest = {vendor("AuthenticAMD")};
  const std::array host = {vendor("GenuineIntel")};
  EXPECT_THAT(why_not(guest, host), HasSubstr("vendor AMD, this host's is of vendor Intel"));
  EXPECT_EQ(why_not(guest, guest), "");
}

TEST(CpuidFits, a_feature_that_the_host_lacks_is_named_and_one_that_the_guest_lacks_does_not_matter) {
  std::array guest = {vendor("AuthenticAMD"), entry(1), entry(7)};
  std::array host = guest;
  guest[2].ebx = 1U << 16 | 1U << 5;  // AVX-512F, AVX2
  host[2].ebx = 1U << 5 | 1U << 3;
  EXPECT_THAT(why_not(guest, host), HasSubstr("CPUID leaf 0x7.0, EBX, bits 0x10000"));
  host[2].ebx = ~0U;
  EXPECT_EQ(why_not(guest, host), "");
}

TEST(CpuidFits, what_a_guest_turns_on_itself_and_what_kvm_adds_is_no_feature_of_the_host) {
  std::array guest = {vendor("AuthenticAMD"), entry(1), entry(7), entry(0x80000001)};
  const std::array host = guest;
  guest[1].ecx = 1U << 27 | 1U << 31 | 1U << 24;
  guest[1].edx = 1U << 28;
  guest[2].ecx = 1U << 4;
  guest[3].ecx = 1U << 1;
  EXPECT_EQ(why_not(guest, host), "");
}

TEST(CpuidFits, each_word_is_looked_at) {
  struct Place {
    std::uint32_t leaf;
    std::uint32_t subleaf;
    std::uint32_t kvm_cpuid_entry2::*reg;
  };
  for (const Place& place :
       {Place{1, 0, &kvm_cpuid_entry2::ecx}, Place{1, 0, &kvm_cpuid_entry2::edx},
        Place{7, 0, &kvm_cpuid_entry2::ebx}, Place{7, 0, &kvm_cpuid_entry2::ecx},
        Place{7, 0, &kvm_cpuid_entry2::edx}, Place{7, 1, &kvm_cpuid_entry2::eax},
        Place{7, 2, &kvm_cpuid_entry2::edx}, Place{0xd, 0, &kvm_cpuid_entry2::eax},
        Place{0xd, 0, &kvm_cpuid_entry2::edx}, Place{0xd, 1, &kvm_cpuid_entry2::eax},
        Place{0x40000001, 0, &kvm_cpuid_entry2::eax}, Place{0x80000001, 0, &kvm_cpuid_entry2::ecx},
        Place{0x80000001, 0, &kvm_cpuid_entry2::edx}, Place{0x80000007, 0, &kvm_cpuid_entry2::edx},
        Place{0x80000008, 0, &kvm_cpuid_entry2::ebx}, Place{0x80000021, 0, &kvm_cpuid_entry2::eax}}) {
    const std::array host = {vendor("AuthenticAMD")};
    std::array guest = {vendor("AuthenticAMD"), entry(place.leaf, place.subleaf)};
    guest[1].*place.reg = 1U << 8;
    EXPECT_NE(why_not(guest, host), "") << std::hex << place.leaf << "." << place.subleaf;
  }
}

}  // namespace
}  // namespace mayfly::x86_64
