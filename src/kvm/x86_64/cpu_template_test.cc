#include "kvm/x86_64/cpu_template.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace mayfly::x86_64 {
namespace {

using Bits32 = BitChange<std::uint32_t>;
using Bits64 = BitChange<std::uint64_t>;

TEST(BitChange, text_says_which_bits_are_set_cleared_and_kept) {
  const struct {
    const char* text;
    Bits32 change;
  } cases[] = {
      {"0b1", {1, 1}},
      {"0b0", {1, 0}},
      {"0bx", {0, 0}},
      {"0b101", {7, 5}},
      {"0b0xx1", {9, 1}},
      {"0b1xxx_0000", {0x8f, 0x80}},
      {"0b_1_", {1, 1}},
      {"0b00000000000000000000000000000000", {0xffffffff, 0}},
      {"0b1111_1111_1111_1111_1111_1111_1111_1111", {0xffffffff, 0xffffffff}},
      {"0b1xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0", {0x80000001, 0x80000000}},
  };
  for (const auto& entry : cases) {
    const auto parsed = Bits32::parse(entry.text);
    ASSERT_TRUE(parsed.has_value()) << entry.text << ": " << parsed.error().message();
    EXPECT_EQ(*parsed, entry.change) << entry.text;
  }
}

TEST(BitChange, what_is_no_bitmap_is_refused) {
  for (const char* text :
       {"", "0b", "_", "0b___", "0b2", "0bX", "0B1", "0x1", "101", "xx", "1", "0b1 ", " 0b1", "0b-1", "0b0b1",
        "0b1\n", "0b1\xce\xbb", "0b111111111111111111111111111111111",
        "0bxxxx_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx_x"}) {
    EXPECT_FALSE(Bits32::parse(text).has_value()) << text;
  }
  EXPECT_FALSE(Bits64::parse("0b" + std::string(65, 'x')).has_value());
  EXPECT_TRUE(Bits64::parse("0b" + std::string(64, 'x')).has_value());
  EXPECT_FALSE(Bits32::parse(std::string(1 << 20, '1')).has_value());
}

TEST(BitChange, its_own_text_is_read_back_as_the_same) {
  for (const char* text : {"0b1", "0b0xx1", "0bx", "0b01_10_xx"}) {
    const Bits32 narrow = Bits32::parse(text).value();
    EXPECT_EQ(narrow.to_string().size(), 34U);
    EXPECT_EQ(Bits32::parse(narrow.to_string()).value(), narrow) << text;
    const Bits64 wide = Bits64::parse(text).value();
    EXPECT_EQ(wide.to_string().size(), 66U);
    EXPECT_EQ(Bits64::parse(wide.to_string()).value(), wide) << text;
  }
  EXPECT_EQ(Bits32::parse("0b10x").value().to_string(), "0b" + std::string(29, 'x') + "10x");
}

TEST(BitChange, it_touches_the_bits_of_its_mask_only) {
  const Bits32 change = Bits32::parse("0b1x0").value();
  for (std::uint32_t word = 0; word < 16; ++word) {
    EXPECT_EQ(change.apply(word), (word & ~5U) | 4U);
  }
  EXPECT_EQ(Bits64::parse("0b" + std::string(64, '1')).value().apply(0),
            std::numeric_limits<std::uint64_t>::max());
}

class TemplateTest : public ::testing::Test {
 protected:
  static CpuidChange leaf(std::uint32_t function, std::uint32_t subleaf, CpuidRegister reg,
                          std::uint32_t mask, std::uint32_t value) {
    return {.leaf = function, .subleaf = subleaf, .flags = 0, .registers = {{reg, {mask, value}}}};
  }
  static MsrChange msr(std::uint32_t index) { return {index, {1, 1}}; }
  void expect_refused(const std::string& text) const {
    const auto valid = template_.validate();
    ASSERT_FALSE(valid.has_value()) << text;
    EXPECT_EQ(valid.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(valid.error().message().find(text), std::string::npos) << valid.error().message();
  }

  CpuTemplate template_;
};

TEST_F(TemplateTest, one_that_changes_nothing_is_valid) {
  EXPECT_TRUE(template_.validate().has_value());
  template_.cpuid = {{.leaf = 7, .subleaf = 0, .flags = 1, .registers = {}}};
  EXPECT_TRUE(template_.validate().has_value());
}

TEST_F(TemplateTest, what_is_changed_twice_is_refused) {
  template_.capabilities = {{56, true}, {56, false}};
  expect_refused("kvm_capabilities: 56 is named twice");
  template_ = {};
  template_.cpuid = {leaf(7, 1, CpuidRegister::kEax, 1, 0), leaf(7, 0, CpuidRegister::kEax, 1, 0),
                     leaf(7, 1, CpuidRegister::kEbx, 1, 0)};
  expect_refused("cpuid_modifiers: leaf 0x7, subleaf 0x1: is changed twice");
  template_ = {};
  template_.cpuid = {leaf(7, 0, CpuidRegister::kEdx, 1, 0)};
  template_.cpuid[0].registers.push_back({CpuidRegister::kEdx, {2, 0}});
  expect_refused("leaf 0x7, subleaf 0x0 edx: is changed twice");
  template_ = {};
  template_.msrs = {msr(0x10a), msr(0x48), msr(0x10a)};
  expect_refused("msr_modifiers: addr 0x10a: is changed twice");
}

TEST_F(TemplateTest, more_than_kvm_takes_at_once_is_refused) {
  for (std::uint32_t index = 0; index <= CpuTemplate::kMaxChanges; ++index) {
    template_.msrs.push_back(msr(0x10000 + index));
  }
  expect_refused("msr_modifiers: there are 257");
  template_.msrs.pop_back();
  EXPECT_TRUE(template_.validate().has_value());
}

TEST_F(TemplateTest, flags_that_kvm_does_not_know_are_refused) {
  template_.cpuid = {{.leaf = 1, .subleaf = 0, .flags = 8, .registers = {}}};
  expect_refused("flags 8");
}

TEST_F(TemplateTest, bits_of_what_guests_do_not_get_can_be_cleared_but_not_set) {
  const struct {
    std::uint32_t leaf;
    std::uint32_t subleaf;
    CpuidRegister reg;
    unsigned bit;
    const char* what;
  } bits[] = {
      {1, 0, CpuidRegister::kEcx, 5, "VMX"},
      {7, 0, CpuidRegister::kEbx, 2, "SGX"},
      {7, 0, CpuidRegister::kEbx, 25, "processor trace"},
      {7, 0, CpuidRegister::kEcx, 30, "SGX"},
      {7, 0, CpuidRegister::kEdx, 22, "AMX"},
      {7, 0, CpuidRegister::kEdx, 24, "AMX"},
      {7, 0, CpuidRegister::kEdx, 25, "AMX"},
      {7, 1, CpuidRegister::kEax, 21, "AMX"},
      {7, 1, CpuidRegister::kEdx, 8, "AMX"},
      {0x80000001, 0, CpuidRegister::kEcx, 2, "SVM"},
  };
  for (const auto& entry : bits) {
    const std::uint32_t bit = 1U << entry.bit;
    template_.cpuid = {leaf(entry.leaf, entry.subleaf, entry.reg, bit, bit)};
    expect_refused(entry.what);
    template_.cpuid = {leaf(entry.leaf, entry.subleaf, entry.reg, bit, 0)};
    EXPECT_TRUE(template_.validate().has_value()) << entry.what;
    template_.cpuid = {leaf(entry.leaf, entry.subleaf, entry.reg, ~bit, ~bit)};
    for (const auto& other : bits) {
      if (other.leaf == entry.leaf && other.subleaf == entry.subleaf && other.reg == entry.reg) {
        template_.cpuid[0].registers[0].bits.value &= ~(1U << other.bit);
      }
    }
    EXPECT_TRUE(template_.validate().has_value()) << entry.what;
  }
}

TEST_F(TemplateTest, registers_that_are_the_machines_own_are_refused_and_their_neighbours_are_not) {
  for (const std::uint32_t index :
       {0x1bU, 0x200U, 0x26fU, 0x6e0U, 0x800U, 0x8ffU, 0xc0000080U, 0xc0000100U, 0xc0000101U}) {
    template_.msrs = {msr(index)};
    expect_refused("is the machine's own");
  }
  for (const std::uint32_t index :
       {0x1aU, 0x1cU, 0x1ffU, 0x270U, 0x277U, 0x6dfU, 0x6e1U, 0x7ffU, 0x900U, 0xc0000081U, 0xc0000102U}) {
    template_.msrs = {msr(index)};
    EXPECT_TRUE(template_.validate().has_value()) << index;
  }
}

}  // namespace
}  // namespace mayfly::x86_64
