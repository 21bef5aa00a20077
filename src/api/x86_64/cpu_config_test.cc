#include <gtest/gtest.h>

#include <string>

#include "api/json_object.h"
#include "api/sections.h"
#include "kvm/x86_64/cpu_template.h"

namespace mayfly::api {
namespace {

using nlohmann::json;
using x86_64::CpuidRegister;

Result<arch::CpuTemplate> read(const std::string& text) {
  MAYFLY_TRY_ASSIGN(const json value, parse_json(text, "the body"));
  return read_cpu_config(value, "cpu-config");
}

std::string error_of(const std::string& text) {
  const auto result = read(text);
  return result ? "" : result.error().message();
}

void expect_refused(const std::string& text, const std::string& reason) {
  const std::string error = error_of(text);
  EXPECT_NE(error.find(reason), std::string::npos) << text << ": " << error;
  EXPECT_TRUE(error.starts_with("cpu-config")) << error;
}

constexpr const char* kAll = R"({
  "kvm_capabilities": ["171", "!56"],
  "cpuid_modifiers": [
    {"leaf": "0x1", "subleaf": "0x0", "flags": 0,
     "modifiers": [{"register": "eax", "bitmap": "0bxxxx000000000011xx00011011110010"},
                   {"register": "edx", "bitmap": "0b0x"}]},
    {"leaf": "0b111", "subleaf": "0x1", "flags": 1, "modifiers": []}],
  "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1xxx_0000"}],
  "reg_modifiers": [], "vcpu_features": []})";

TEST(CpuConfig, every_field_is_read) {
  const auto read_template = read(kAll);
  ASSERT_TRUE(read_template.has_value()) << read_template.error().message();
  EXPECT_EQ(read_template->capabilities, (std::vector<CapabilityChange>{{171, true}, {56, false}}));
  ASSERT_EQ(read_template->cpuid.size(), 2U);
  const auto& first = read_template->cpuid[0];
  EXPECT_EQ(first.leaf, 1U);
  EXPECT_EQ(first.subleaf, 0U);
  ASSERT_EQ(first.registers.size(), 2U);
  EXPECT_EQ(first.registers[0].reg, CpuidRegister::kEax);
  EXPECT_EQ(first.registers[0].bits.mask, 0x0fff3fffU);
  EXPECT_EQ(first.registers[0].bits.value, 0x000306f2U);
  EXPECT_EQ(first.registers[1].reg, CpuidRegister::kEdx);
  EXPECT_EQ(first.registers[1].bits.mask, 2U);
  EXPECT_EQ(first.registers[1].bits.value, 0U);
  EXPECT_EQ(read_template->cpuid[1].leaf, 7U);
  EXPECT_EQ(read_template->cpuid[1].subleaf, 1U);
  EXPECT_EQ(read_template->cpuid[1].flags, 1U);
  ASSERT_EQ(read_template->msrs.size(), 1U);
  EXPECT_EQ(read_template->msrs[0].index, 0x10aU);
  EXPECT_EQ(read_template->msrs[0].bits.mask, 0x8fU);
  EXPECT_EQ(read_template->msrs[0].bits.value, 0x80U);
}

TEST(CpuConfig, its_json_is_read_back_as_the_same) {
  const json once = to_json(read(kAll).value());
  EXPECT_EQ(once["kvm_capabilities"], json({"171", "!56"}));
  EXPECT_EQ(once["cpuid_modifiers"][0]["leaf"], "0x1");
  EXPECT_EQ(once["cpuid_modifiers"][0]["modifiers"][0]["bitmap"], "0bxxxx000000000011xx00011011110010");
  EXPECT_EQ(once["msr_modifiers"][0]["addr"], "0x10a");
  EXPECT_EQ(to_json(read(once.dump()).value()), once);
  EXPECT_EQ(to_json(read("{}").value()), json({{"kvm_capabilities", json::array()},
                                               {"cpuid_modifiers", json::array()},
                                               {"msr_modifiers", json::array()}}));
}

TEST(CpuConfig, what_is_of_the_other_architecture_is_refused_by_name) {
  expect_refused(R"({"reg_modifiers": [{"addr": "0x603000000013c020", "bitmap": "0b1"}]})",
                 "cpu-config.reg_modifiers: is for aarch64 processors only");
  expect_refused(R"({"vcpu_features": [{"index": 0, "bitmap": "0b1"}]})",
                 "cpu-config.vcpu_features: is for aarch64 processors only");
  EXPECT_EQ(error_of(R"({"reg_modifiers": null, "vcpu_features": null, "msr_modifiers": null})"), "");
}

std::string cpuid(const std::string& fields) {
  return R"({"cpuid_modifiers": [{)" + fields + "}]}";
}
std::string modifier(const std::string& fields) {
  return cpuid(R"("leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [{)" + fields + "}]");
}
std::string msr(const std::string& fields) {
  return R"({"msr_modifiers": [{)" + fields + "}]}";
}

TEST(CpuConfig, hostile_and_wrong_input_is_refused_naming_the_field) {
  expect_refused("[]", "must be an object");
  expect_refused("7", "must be an object");
  expect_refused(R"({"cpuid": []})", "unknown field \"cpuid\"");
  for (const char* key : {"kvm_capabilities", "cpuid_modifiers", "msr_modifiers", "reg_modifiers"}) {
    for (const char* value : {"{}", "7", "\"0x1\"", "true"}) {
      expect_refused("{\"" + std::string(key) + "\": " + value + "}", std::string(key) + ": must be a list");
    }
  }
  for (const char* text :
       {R"("")", R"("!")", R"("!!5")", R"("-1")", R"("+1")", R"("4294967296")", R"("0x10")", R"("5 ")",
        R"(" 5")", R"("five")", "5", "null", "[]", "{}", R"("5\u0000")"}) {
    expect_refused(std::string(R"({"kvm_capabilities": ["1", )") + text + "]}",
                   "cpu-config.kvm_capabilities[1]: must be the number");
  }
  expect_refused(R"({"cpuid_modifiers": [7]})", "cpuid_modifiers[0]: must be an object");
  for (const char* missing : {"leaf", "subleaf", "flags", "modifiers"}) {
    json entry = {{"leaf", "0x7"}, {"subleaf", "0x0"}, {"flags", 1}, {"modifiers", json::array()}};
    entry.erase(missing);
    expect_refused(json({{"cpuid_modifiers", {entry}}}).dump(),
                   "cpuid_modifiers[0]: field \"" + std::string(missing) + "\" is missing");
  }
  for (const char* number :
       {"7", "", "0x", "0b", "0x-1", "0x+1", "0x100000000", "0b2", "0xg", " 0x1", "0x1 ", "0X1", "0x1_0"}) {
    expect_refused(
        cpuid(R"("leaf": ")" + std::string(number) + R"(", "subleaf": "0x0", "flags": 0, "modifiers": [])"),
        "cpuid_modifiers[0]: field \"leaf\"");
    expect_refused(msr(R"("addr": ")" + std::string(number) + R"(", "bitmap": "0b1")"), "field \"addr\"");
  }
  expect_refused(cpuid(R"("leaf": 7, "subleaf": "0x0", "flags": 0, "modifiers": [])"), "must be a string");
  for (const char* flags : {"8", "-1", "1.0", "\"1\"", "4294967296", "18446744073709551616"}) {
    expect_refused(
        cpuid(R"("leaf": "0x7", "subleaf": "0x0", "modifiers": [], "flags": )" + std::string(flags)),
        "field \"flags\"");
  }
  expect_refused(modifier(R"("register": "rax", "bitmap": "0b1")"), "modifiers[0]: field \"register\"");
  expect_refused(modifier(R"("register": "EAX", "bitmap": "0b1")"), "field \"register\"");
  expect_refused(modifier(R"("bitmap": "0b1")"), "field \"register\" is missing");
  expect_refused(modifier(R"("register": "eax")"), "field \"bitmap\" is missing");
  expect_refused(modifier(R"("register": "eax", "bitmap": "0b1", "mask": 1)"), "unknown field \"mask\"");
  for (const char* text : {"", "0b", "0b12", "0bX", "0b1111_1111_1111_1111_1111_1111_1111_1111_1"}) {
    expect_refused(modifier(R"("register": "eax", "bitmap": ")" + std::string(text) + "\""),
                   "cpuid_modifiers[0].modifiers[0]: field \"bitmap\"");
  }
  expect_refused(msr(R"("addr": "0x10a", "bitmap": "0b)" + std::string(65, '0') + "\""),
                 "msr_modifiers[0]: field \"bitmap\"");
  expect_refused(msr(R"("addr": "0x10a", "bitmap": 1)"), "must be a string");
}

TEST(CpuConfig, what_no_guest_can_have_is_refused_as_soon_as_it_is_said) {
  expect_refused(cpuid(R"("leaf": "0x1", "subleaf": "0x0", "flags": 0,
                          "modifiers": [{"register": "ecx", "bitmap": "0b1xxxxx"}])"),
                 "VMX");
  expect_refused(msr(R"("addr": "0x1b", "bitmap": "0b0")"), "local APIC");
  expect_refused(R"({"kvm_capabilities": ["5", "!5"]})", "5 is named twice");
}

}  // namespace
}  // namespace mayfly::api
