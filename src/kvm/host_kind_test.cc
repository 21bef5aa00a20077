#include "kvm/host_kind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace mayfly {
namespace {

using testing::ElementsAre;

HostFacts facts(std::string flags, std::vector<std::string> modules) {
  HostFacts facts;
  facts.cpu_flags = std::move(flags);
  facts.modules = std::move(modules);
  facts.modules_known = true;
  return facts;
}

TEST(HostKind, hardware_needs_the_processors_flag_and_its_own_module) {
  EXPECT_EQ(classify_host(facts(" fpu vmx smx", {"kvm", "kvm_intel"})), HostKind::kHardware);
  EXPECT_EQ(classify_host(facts(" fpu svm", {"kvm", "kvm_amd"})), HostKind::kHardware);
  EXPECT_EQ(classify_host(facts(" fpu svm", {"kvm", "kvm_amd", "kvm_intel"})), HostKind::kHardware);
  EXPECT_EQ(classify_host(facts(" fpu svm", {"kvm", "kvm_intel"})), HostKind::kNoHardware);
  EXPECT_EQ(classify_host(facts(" fpu", {"kvm", "kvm_amd"})), HostKind::kNoHardware);
  EXPECT_EQ(classify_host(facts(" fpu", {"kvm", "kvm_pvm"})), HostKind::kNoHardware);
  EXPECT_EQ(classify_host(facts(" fpu svm", {})), HostKind::kNoKvm);
}

TEST(HostKind, a_flag_is_a_whole_word) {
  EXPECT_EQ(classify_host(facts(" svm_lock xvmx", {"kvm", "kvm_amd", "kvm_intel"})), HostKind::kNoHardware);
  EXPECT_EQ(classify_host(facts("svm_lock svm", {"kvm", "kvm_amd"})), HostKind::kHardware);
}

TEST(HostKind, a_processors_extension_is_named_whether_it_is_in_use_or_not) {
  EXPECT_EQ(processor_extension(facts("fpu vmx", {"kvm"})), "Intel VT-x");
  EXPECT_EQ(processor_extension(facts("fpu svm", {})), "AMD-V");
  EXPECT_EQ(processor_extension(facts("svm_lock vmxx", {"kvm", "kvm_amd"})), "");
  EXPECT_EQ(processor_extension(HostFacts{}), "");
}

TEST(HostKind, what_the_host_hides_is_said_to_be_unknown) {
  EXPECT_EQ(classify_host(HostFacts{}), HostKind::kUnknown);
  EXPECT_EQ(classify_host(facts("", {"kvm"})), HostKind::kUnknown);
  HostFacts no_modules = facts(" svm", {});
  no_modules.modules_known = false;
  EXPECT_EQ(classify_host(no_modules), HostKind::kUnknown);
  const HostFacts read = read_host_facts("/nonexistent/cpuinfo", "/nonexistent/module");
  EXPECT_EQ(classify_host(read), HostKind::kUnknown);
}

TEST(HostKind, modules_of_hardware_are_missed_where_kvm_is_there_without_them) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "mayfly_host_kind_modules";
  std::filesystem::remove_all(folder);
  EXPECT_FALSE(lacks_hardware_modules(folder));  // nothing is known
  std::filesystem::create_directories(folder / "kvm");
  EXPECT_TRUE(lacks_hardware_modules(folder));
  for (const char* module : {"kvm_amd", "kvm_intel"}) {
    std::filesystem::create_directory(folder / module);
    EXPECT_FALSE(lacks_hardware_modules(folder)) << module;
    std::filesystem::remove(folder / module);
  }
  std::filesystem::remove_all(folder);
}

TEST(HostFacts, are_read_from_the_first_processor_and_the_modules_folder) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "mayfly_host_kind_test";
  std::filesystem::remove_all(folder);
  for (const char* module : {"kvm_amd", "kvm", "snd"}) {
    std::filesystem::create_directories(folder / "module" / module);
  }
  std::ofstream(folder / "cpuinfo") << "processor\t: 0\nmodel name\t: A Processor\nflags_like\t: no\nvmx "
                                       "flags\t: no\nflags\t\t: fpu svm\nbugs\t\t:\n"
                                    << "processor\t: 1\nflags\t\t: other\n";
  const HostFacts read = read_host_facts(folder / "cpuinfo", folder / "module");
  EXPECT_EQ(read.cpu_model, "A Processor");
  EXPECT_EQ(read.cpu_flags, "fpu svm");
  EXPECT_THAT(read.modules, ElementsAre("kvm", "kvm_amd"));
  EXPECT_EQ(classify_host(read), HostKind::kHardware);
  std::filesystem::remove_all(folder);
}

TEST(HostAddressBits, are_as_many_as_a_processor_can_have) {
  EXPECT_GE(host_address_bits(), 32U);
  EXPECT_LE(host_address_bits(), 52U);  // of x86-64 and of 64-bit Arm alike
}

}  // namespace
}  // namespace mayfly
