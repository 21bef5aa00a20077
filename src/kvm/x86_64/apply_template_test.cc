#include "kvm/x86_64/apply_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "kvm/x86_64/cpuid.h"
#include "support/cpuid_entries.h"

namespace mayfly::x86_64 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::leaf;
using testing::sub;
using Entries = std::vector<kvm_cpuid_entry2>;

constexpr unsigned kLeastBits = 36;

// "GenuineIntel" with every feature of leaves 1 and 7.
Entries supported_by_kvm() {
  return {leaf(0, 0x1f, 0x756e6547, 0x6c65746e, 0x49656e69),
          leaf(1, 0x50657, 0x00100800, 0xffffffff, 0xffffffff),
          leaf(3, 0, 0, 0, 0),
          sub(4, 0, 0x1c004121, 0x01c0003f, 0x3f, 0),
          leaf(6, 4, 0, 0, 0),
          sub(7, 0, 2, 0xffffffff, 0xffffffff, 0xffffffff),
          sub(7, 1, 0x30, 0, 0, 0),
          leaf(0xa, 0x07300802, 0, 0, 0x8603),
          sub(0xb, 0, 1, 2, 0x100, 0),
          sub(0xb, 1, 7, 64, 0x201, 0),
          sub(0x14, 0, 1, 0xf, 7, 0),
          leaf(0x80000000, 0x80000008, 0, 0, 0),
          leaf(0x80000001, 0, 0, 0x121, 0x2c100800),
          leaf(0x80000008, 0x302e, 0, 0, 0)};
}

class ApplyCpuid : public ::testing::Test {
 protected:
  const kvm_cpuid_entry2& at(std::uint32_t function, std::uint32_t index = 0) const {
    static const kvm_cpuid_entry2 zeros{};
    const auto found = std::find_if(result_.entries.begin(), result_.entries.end(), [=](const auto& entry) {
      return entry.function == function && entry.index == index;
    });
    return found != result_.entries.end() ? *found : zeros;
  }
  static kvm_cpuid_entry2 before(const Entries& entries, std::uint32_t function, std::uint32_t index = 0) {
    for (const kvm_cpuid_entry2& entry : entries) {
      if (entry.function == function && entry.index == index) {
        return entry;
      }
    }
    return {};
  }
  static CpuidChange change(std::uint32_t function, std::uint32_t index, CpuidRegister reg,
                            std::uint32_t mask, std::uint32_t value) {
    const std::uint32_t flags = before(supported_by_kvm(), function, index).flags;
    return {.leaf = function, .subleaf = index, .flags = flags, .registers = {{reg, {mask, value}}}};
  }

  Result<TemplatedCpuid> applied(std::vector<CpuidChange> changes) const {
    return apply_cpuid_changes(guest_, supported_, changes, kLeastBits);
  }
  void apply(std::vector<CpuidChange> changes) {
    auto result = applied(std::move(changes));
    ASSERT_TRUE(result.has_value()) << result.error().message();
    result_ = std::move(*result);
  }

  Entries supported_ = supported_by_kvm();
  Entries guest_ = make_guest_cpuid(supported_, {.vcpu_count = 2}).value();
  TemplatedCpuid result_;
};

TEST_F(ApplyCpuid, bits_are_set_cleared_and_kept_in_the_leaf_that_is_meant) {
  CpuidChange both = change(7, 0, CpuidRegister::kEbx, 0xf0000001, 0);
  both.registers.push_back({CpuidRegister::kEdx, {0x100, 0}});
  apply({both, change(7, 1, CpuidRegister::kEax, 0x31, 0x1), change(1, 0, CpuidRegister::kEax, 0xf, 0x4)});
  EXPECT_THAT(result_.warnings, IsEmpty());
  EXPECT_EQ(at(7).ebx, before(guest_, 7).ebx & 0x0ffffffeU);
  EXPECT_EQ(at(7).edx, before(guest_, 7).edx & ~0x100U);
  EXPECT_EQ(at(7).ecx, before(guest_, 7).ecx);
  EXPECT_EQ(at(7, 1).eax, 1U);
  EXPECT_EQ(at(1).eax, 0x50654U);
  EXPECT_EQ(at(0x80000001).edx, before(guest_, 0x80000001).edx);
  EXPECT_EQ(result_.entries.size(), guest_.size());
}

TEST_F(ApplyCpuid, a_leaf_that_kvm_lists_as_zeros_is_there_and_stays_off_the_list_unless_it_gets_something) {
  apply({change(3, 0, CpuidRegister::kEax, 0xffffffff, 0)});
  EXPECT_EQ(result_.entries.size(), guest_.size());
  apply({change(3, 0, CpuidRegister::kEax, 0xffffffff, 0x55)});
  EXPECT_EQ(at(3).eax, 0x55U);
  EXPECT_EQ(result_.entries.size(), guest_.size() + 1);
  // All of a leaf taken away.
  apply({change(7, 1, CpuidRegister::kEax, 0xffffffff, 0)});
  EXPECT_EQ(result_.entries.size(), guest_.size() - 1);
}

TEST_F(ApplyCpuid, a_leaf_or_a_subleaf_that_kvm_does_not_list_is_named) {
  for (const auto& [function, index] : {std::pair{0x99U, 0U}, std::pair{7U, 2U}, std::pair{1U, 1U}}) {
    const auto result = applied(
        {change(7, 0, CpuidRegister::kEbx, 1, 0), change(function, index, CpuidRegister::kEax, 1, 0)});
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().code(), ErrorCode::kUnsupported);
    EXPECT_THAT(result.error().message(), HasSubstr("does not list it"));
  }
  EXPECT_THAT(applied({change(0x99, 0, CpuidRegister::kEax, 1, 0)}).error().message(),
              HasSubstr("leaf 0x99, subleaf 0x0"));
}

TEST_F(ApplyCpuid, a_leaf_of_what_guests_do_not_get_need_not_be_listed_to_be_cleared) {
  for (const auto& [function, index] : {std::pair{0xdU, 17U}, std::pair{0xdU, 18U}, std::pair{0x1dU, 1U}}) {
    apply({change(function, index, CpuidRegister::kEax, 0xffffffff, 0)});
    EXPECT_EQ(result_.entries.size(), guest_.size()) << index;
    EXPECT_THAT(result_.warnings, IsEmpty());
    EXPECT_FALSE(applied({change(function, index, CpuidRegister::kEax, 1, 1)}).has_value()) << index;
  }
  EXPECT_FALSE(applied({change(0xd, 16, CpuidRegister::kEax, 1, 0)}).has_value());
}

TEST_F(ApplyCpuid, what_the_machine_decides_stays_and_is_warned_of_where_the_template_differs) {
  const struct {
    std::uint32_t leaf;
    std::uint32_t index;
    CpuidRegister reg;
    std::uint32_t bits;
  } own_bits[] = {
      {0, 0, CpuidRegister::kEbx, 0xffffffff},
      {0, 0, CpuidRegister::kEcx, 0xffffffff},
      {0, 0, CpuidRegister::kEdx, 0xffffffff},
      {1, 0, CpuidRegister::kEbx, 0xffffff00},
      {1, 0, CpuidRegister::kEcx, 0x81008014},
      {1, 0, CpuidRegister::kEdx, 0x10200200},
      {4, 0, CpuidRegister::kEax, 0xffffc000},
      {6, 0, CpuidRegister::kEax, 0xfffffffb},
      {7, 0, CpuidRegister::kEcx, 0x20},
      {7, 0, CpuidRegister::kEdx, 0x80000},
      {0xa, 0, CpuidRegister::kEax, 0xffffffff},
      {0xb, 0, CpuidRegister::kEbx, 0xffffffff},
      {0xb, 1, CpuidRegister::kEdx, 0xffffffff},
      {0x14, 0, CpuidRegister::kEbx, 0xffffffff},
      {0x80000001, 0, CpuidRegister::kEcx, 1U << 22},
      {0x80000008, 0, CpuidRegister::kEcx, 0xf0ff},
  };
  for (const auto& own : own_bits) {
    for (const std::uint32_t value : {0U, own.bits}) {
      apply({change(own.leaf, own.index, own.reg, own.bits, value)});
      EXPECT_EQ(result_.entries.size(), guest_.size()) << own.leaf;
      EXPECT_EQ(at(own.leaf, own.index).eax, before(guest_, own.leaf, own.index).eax) << own.leaf;
      EXPECT_EQ(at(own.leaf, own.index).ebx, before(guest_, own.leaf, own.index).ebx) << own.leaf;
      EXPECT_EQ(at(own.leaf, own.index).ecx, before(guest_, own.leaf, own.index).ecx) << own.leaf;
      EXPECT_EQ(at(own.leaf, own.index).edx, before(guest_, own.leaf, own.index).edx) << own.leaf;
    }
  }
  apply({change(1, 0, CpuidRegister::kEcx, 0x80000001, 0)});
  EXPECT_THAT(result_.warnings,
              ElementsAre("cpuid_modifiers: leaf 0x1, subleaf 0x0 ecx: bits 0x80000000 are the machine's to "
                          "decide and stay as they are"));
  EXPECT_EQ(at(1).ecx, before(guest_, 1).ecx & ~1U);
  // The same as the machine's own is nothing to warn of.
  apply({change(1, 0, CpuidRegister::kEcx, 0x80000000, 0x80000000)});
  EXPECT_THAT(result_.warnings, IsEmpty());
}

TEST_F(ApplyCpuid, the_flags_of_a_leaf_stay) {
  CpuidChange wrong = change(7, 0, CpuidRegister::kEbx, 1, 0);
  wrong.flags = 0;
  apply({wrong});
  EXPECT_EQ(at(7).flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
  EXPECT_THAT(result_.warnings, ElementsAre(HasSubstr("flags 0: stay 1")));
}

TEST_F(ApplyCpuid, physical_addresses_are_as_wide_as_memory_needs_and_at_most_as_the_hosts) {
  const auto width = [&](std::uint32_t bits) {
    return applied({change(0x80000008, 0, CpuidRegister::kEax, 0xff, bits)});
  };
  for (const std::uint32_t bits : {36U, 40U, 46U}) {
    ASSERT_TRUE(width(bits).has_value()) << bits;
    result_ = width(bits).value();
    EXPECT_EQ(at(0x80000008).eax, 0x3000U | bits);
  }
  for (const std::uint32_t bits : {0U, 35U, 47U, 52U, 255U}) {
    ASSERT_FALSE(width(bits).has_value()) << bits;
    EXPECT_EQ(width(bits).error().code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(width(bits).error().message(),
                HasSubstr("at least 36, for the guest's memory, and at most 46"));
  }
  EXPECT_TRUE(applied({change(0x80000008, 0, CpuidRegister::kEax, 0xff00, 0x3900)}).has_value());
}

TEST_F(ApplyCpuid, ids_are_filled_into_what_comes_out) {
  apply({change(1, 0, CpuidRegister::kEbx, 0xffffffff, 0xff)});
  set_vcpu_id(result_.entries, 1);
  EXPECT_EQ(at(1).ebx >> 24, 1U);
  EXPECT_EQ(at(1).ebx & 0xff, 0xffU);
  EXPECT_EQ(at(0xb).edx, 1U);
}

// A vCPU that has some registers, of which some take no other value.
struct FakeMsrs {
  std::map<std::uint32_t, std::uint64_t> values;
  std::vector<std::uint32_t> stubborn{};
  int writes = 0;

  MsrGetter getter() {
    return [this](std::span<const std::uint32_t> indices) -> Result<std::vector<kvm_msr_entry>> {
      std::vector<kvm_msr_entry> entries;
      for (const std::uint32_t index : indices) {
        if (!values.contains(index)) {
          break;
        }
        entries.push_back({index, 0, values.at(index)});
      }
      return entries;
    };
  }
  MsrSetter setter() {
    return [this](std::span<const kvm_msr_entry> entries) -> Result<std::size_t> {
      std::size_t count = 0;
      for (const kvm_msr_entry& entry : entries) {
        if (std::find(stubborn.begin(), stubborn.end(), entry.index) != stubborn.end()) {
          break;
        }
        values[entry.index] = entry.data;
        ++writes;
        ++count;
      }
      return count;
    };
  }
};

Result<void> apply(FakeMsrs& vcpu, const std::vector<MsrChange>& changes) {
  return apply_msr_changes(changes, vcpu.getter(), vcpu.setter());
}

TEST(ApplyMsrs, bits_are_changed_in_the_value_that_is_there) {
  FakeMsrs vcpu{{{0x10a, 0xff00}, {0x48, 1}, {0x8b, 7}}};
  ASSERT_TRUE(apply(vcpu, {{0x48, {6, 4}}, {0x10a, {~std::uint64_t{0} << 12, std::uint64_t{1} << 63}}}));
  EXPECT_EQ(vcpu.values[0x48], 5U);
  EXPECT_EQ(vcpu.values[0x10a], (std::uint64_t{1} << 63) | 0xf00);
  EXPECT_EQ(vcpu.values[0x8b], 7U);
}

TEST(ApplyMsrs, one_that_is_not_there_is_named_and_none_is_written) {
  FakeMsrs vcpu{{{0x48, 1}}};
  const auto result = apply(vcpu, {{0x48, {2, 2}}, {0x9999, {1, 1}}});
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(result.error().message(), HasSubstr("addr 0x9999: this host's KVM has no such register"));
  EXPECT_EQ(vcpu.writes, 0);
}

TEST(ApplyMsrs, a_value_that_is_refused_is_named) {
  FakeMsrs vcpu{{{0x48, 1}, {0x8b, 0}}, {0x8b}};
  const auto result = apply(vcpu, {{0x48, {2, 2}}, {0x8b, {0xf0, 0x50}}});
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(result.error().message(), HasSubstr("addr 0x8b: this host's KVM refuses 0x50"));
}

TEST(ApplyMsrs, those_that_a_kernel_is_entered_with_stay_as_they_are) {
  FakeMsrs vcpu{{{0x1a0, 1}, {0x174, 0}}};
  EXPECT_TRUE(apply(vcpu, {{0x1a0, {1, 0}}, {0x174, {1, 1}}}));
  EXPECT_EQ(vcpu.writes, 0);
  EXPECT_TRUE(apply(vcpu, {}));
}

}  // namespace
}  // namespace mayfly::x86_64
