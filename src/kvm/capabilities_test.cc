#include "kvm/capabilities.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace mayfly {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

TEST(Capabilities, a_kvm_with_all_of_them_gives_no_warning) {
  EXPECT_THAT(check_capabilities(wanted_capabilities(), [](std::uint32_t) { return 1; }).value(), IsEmpty());
}

TEST(Capabilities, each_missing_one_is_named_with_what_it_is_for) {
  for (const Capability& missing : wanted_capabilities()) {
    const auto checked = check_capabilities(
        wanted_capabilities(), [&](std::uint32_t number) { return number == missing.number ? 0 : 1; });
    std::string text;
    if (missing.need == Need::kEssential) {
      ASSERT_FALSE(checked.has_value()) << missing.name;
      EXPECT_EQ(checked.error().code(), ErrorCode::kUnsupported);
      text = checked.error().message();
    } else {
      ASSERT_TRUE(checked.has_value()) << missing.name;
      ASSERT_EQ(checked->size(), 1U);
      text = checked->front();
    }
    EXPECT_THAT(text, HasSubstr(std::string(missing.name)));
    EXPECT_THAT(text, HasSubstr(std::string(missing.what_for)));
  }
}

TEST(Capabilities, a_kvm_with_none_is_told_all_the_essential_ones_at_once) {
  const auto checked = check_capabilities(wanted_capabilities(), [](std::uint32_t) { return 0; });
  ASSERT_FALSE(checked.has_value());
  for (const Capability& capability : wanted_capabilities()) {
    if (capability.need == Need::kEssential) {
      EXPECT_THAT(checked.error().message(), HasSubstr(std::string(capability.name)));
    } else {
      EXPECT_THAT(checked.error().message(), Not(HasSubstr(std::string(capability.name) + " ")));
    }
  }
}

TEST(Capabilities, a_refused_question_counts_as_missing) {
  EXPECT_FALSE(check_capabilities(wanted_capabilities(), [](std::uint32_t) { return -1; }).has_value());
}

TEST(Capabilities, one_that_is_taken_off_the_list_is_not_missed_whatever_it_is_for) {
  for (const Capability& missing : wanted_capabilities()) {
    const CapabilityCheck check = [&](std::uint32_t number) { return number == missing.number ? 0 : 1; };
    const std::vector<CapabilityChange> off = {{1000, true}, {missing.number, false}};
    EXPECT_THAT(check_capabilities(wanted_capabilities(), check, off).value(), IsEmpty()) << missing.name;
    // To require what is wanted anyway changes nothing.
    const std::vector<CapabilityChange> on = {{missing.number, true}};
    EXPECT_EQ(check_capabilities(wanted_capabilities(), check, on).has_value(),
              missing.need == Need::kOptional);
  }
}

TEST(Capabilities, one_that_is_required_on_top_is_named_where_it_is_missing) {
  const CapabilityCheck check = [](std::uint32_t number) { return number < 100 ? 1 : 0; };
  const std::vector<CapabilityChange> changes = {{56, true}, {171, false}, {99, true}};
  EXPECT_TRUE(check_required(changes, check).has_value());
  const std::vector<CapabilityChange> too_much = {{56, true}, {171, true}};
  const auto missing = check_required(too_much, check);
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(missing.error().message(), HasSubstr("lacks capability 171"));
}

TEST(Capabilities, each_is_asked_once) {
  std::set<std::uint32_t> asked;
  EXPECT_TRUE(check_capabilities(wanted_capabilities(), [&](std::uint32_t number) {
                EXPECT_TRUE(asked.insert(number).second) << number;
                return 1;
              }).has_value());
  EXPECT_EQ(asked.size(), wanted_capabilities().size());
}

}  // namespace
}  // namespace mayfly
