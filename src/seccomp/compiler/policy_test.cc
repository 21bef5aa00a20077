#include "seccomp/compiler/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/syscall.h>

#include "seccomp/compiler/constants.h"
#include "seccomp/format.h"

namespace mayfly::seccomp {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Result<Policy> with_rules(const std::string& rules) {
  return parse_policy(R"({"thread": "vcpu", "rules": [)" + rules + "]}", "p.json");
}

std::string refusal(const Result<Policy>& policy) {
  return policy ? "none" : policy.error().message();
}

TEST(Policy, says_which_thread_may_make_which_call_with_which_arguments) {
  const auto policy = with_rules(
      R"({"call": "read", "reason": "r"},
         {"call": "ioctl", "arguments": [{"index": 1, "equals": "KVM_RUN"}], "reason": "r"},
         {"call": "mmap", "arguments": [{"index": 2, "mask": "PROT_EXEC", "equals": 0}, {"index": 3, "equals": 34}],
          "reason": "r"},
         {"call": "tgkill", "arguments": [{"index": 0, "equals": "OWN_PROCESS"}], "reason": "r"})");
  ASSERT_TRUE(policy.has_value()) << policy.error().message();
  EXPECT_EQ(policy->thread, FilteredThread::kVcpu);
  ASSERT_EQ(policy->rules.size(), 4U);
  EXPECT_EQ(policy->rules[0].number, SYS_read);
  EXPECT_TRUE(policy->rules[0].arguments.empty());
  const ArgumentTest request = policy->rules[1].arguments.at(0);
  EXPECT_EQ(request.index, 1U);
  EXPECT_EQ(request.value, static_cast<std::uint32_t>(KVM_RUN));
  EXPECT_EQ(request.mask, UINT32_MAX) << "the kernel takes an int";
  EXPECT_EQ(policy->rules[2].arguments.at(0).mask, 4U);
  EXPECT_EQ(policy->rules[2].arguments.at(0).value, 0U);
  EXPECT_EQ(policy->rules[2].arguments.at(1).mask, UINT64_MAX) << "the kernel takes a long";
  EXPECT_EQ(policy->rules[3].arguments.at(0).value, seccomp_format::kOwnProcess);
}

TEST(Policy, names_of_bits_are_put_together) {
  const auto policy = with_rules(
      R"({"call": "mmap", "arguments": [{"index": 2, "equals": "PROT_READ|PROT_WRITE"}], "reason": "r"})");
  ASSERT_TRUE(policy.has_value()) << policy.error().message();
  EXPECT_EQ(policy->rules[0].arguments.at(0).value, 3U);
}

TEST(Policy, what_is_wrong_is_refused_with_the_rule_that_it_is_in) {
  const auto rule = [](const std::string& fields) { return refusal(with_rules("{" + fields + "}")); };
  EXPECT_THAT(rule(R"("call": "read", "reason": "")"), StartsWith("p.json: rule 1: read: \"reason\""));
  EXPECT_THAT(rule(R"("call": "read")"), HasSubstr("has no \"reason\""));
  EXPECT_THAT(rule(R"("call": "reed", "reason": "r")"), HasSubstr("no system call \"reed\""));
  EXPECT_THAT(rule(R"("call": "mmap2", "reason": "r")"), HasSubstr("no system call \"mmap2\""));
  EXPECT_THAT(rule(R"("call": 3, "reason": "r")"), HasSubstr("name of a system call"));
  EXPECT_THAT(rule(R"("call": "read", "reason": "r", "args": [])"), HasSubstr("no field \"args\""));
  EXPECT_THAT(rule(R"("call": "read", "reason": "r", "arguments": [])"), HasSubstr("at least one"));
  const auto argument = [&rule](const std::string& fields) {
    return rule(R"("call": "ioctl", "reason": "r", "arguments": [{)" + fields + "}]");
  };
  EXPECT_THAT(argument(R"("index": 6, "equals": 0)"), HasSubstr("from 0 to 5"));
  EXPECT_THAT(argument(R"("index": -1, "equals": 0)"), HasSubstr("from 0 to 5"));
  EXPECT_THAT(argument(R"("index": 1)"), HasSubstr("has no \"equals\""));
  EXPECT_THAT(argument(R"("index": 1, "equals": "KVM_WALK")"), HasSubstr("\"KVM_WALK\""));
  EXPECT_THAT(argument(R"("index": 1, "equals": "KVM_RUN|")"), HasSubstr("\"\""));
  EXPECT_THAT(argument(R"("index": 1, "equals": -1)"), HasSubstr("0 or more"));
  EXPECT_THAT(argument(R"("index": 1, "equals": 1.5)"), HasSubstr("0 or more"));
  EXPECT_THAT(argument(R"("index": 1, "equals": 4294967296)"), HasSubstr("never hold"));
  EXPECT_THAT(argument(R"("index": 1, "mask": 1, "equals": 2)"), HasSubstr("never hold"));
  EXPECT_THAT(argument(R"("index": 1, "equals": 1}, {"index": 1, "equals": 2)"), HasSubstr("tested twice"));
  const std::string read = R"({"call": "read", "reason": "r"})";
  EXPECT_THAT(refusal(with_rules(read + "," + read)), HasSubstr("rule 2: it is given twice"));
  EXPECT_THAT(
      refusal(with_rules(R"({"call": "ioctl", "arguments": [{"index": 1, "equals": 1}], "reason": "r"},
                                    {"call": "ioctl", "reason": "r"})")),
      HasSubstr("any arguments"));
  EXPECT_THAT(refusal(with_rules("")), HasSubstr("\"rules\""));
  EXPECT_THAT(refusal(with_rules("3")), HasSubstr("must be an object"));
}

TEST(Policy, a_text_that_is_no_policy_is_refused) {
  for (const char* text :
       {"", "{", "[]", "null", R"({"thread": "vcpu"})", R"({"thread": "gpu", "rules": [1]})",
        R"({"thread": "vcpu", "rules": {}, "more": 1})",
        R"({"thread": "vcpu", "thread": "api", "rules": [{"call": "read", "reason": "r"}]})"}) {
    EXPECT_THAT(refusal(parse_policy(text, "p.json")), StartsWith("p.json: ")) << text;
  }
  EXPECT_THAT(refusal(parse_policy(std::string(100'000, '['), "p.json")), StartsWith("p.json: "));
}

TEST(Constants, are_the_kernels) {
  EXPECT_EQ(constant("KVM_RUN"), static_cast<std::uint32_t>(KVM_RUN));
  EXPECT_EQ(constant("PROT_EXEC"), 4U);
  EXPECT_EQ(constant(""), std::nullopt);
}

}  // namespace
}  // namespace mayfly::seccomp
