#include "vmm/machine.h"

#include <gtest/gtest.h>

#include <string>

#include "support/fake_event.h"

namespace mayfly {
namespace {

struct NoConsole final : SerialBackend {
  void transmit(std::uint8_t /*byte*/) override {}
  void input_room_available() override {}
};

// What comes of a configuration that cannot be built: it is refused before KVM is asked for, so that no host
// is needed.
BuildError refusal_of(const VmConfig& config) {
  testing::ManualRegistrar registrar;
  NoConsole console;
  SerialMetrics metrics;
  const GuestFiles files;
  auto machine = Machine::build(
      config, {files, {}}, {registrar, console, metrics, nullptr, [](const Outcome&) {}, [] { return 36U; }});
  return machine ? BuildError(Error(ErrorCode::kInternal, "it was built")) : machine.error();
}

void expect_configuration_fault(const VmConfig& config, const std::string& text) {
  const BuildError refused = refusal_of(config);
  EXPECT_EQ(refused.fault, BuildError::Fault::kConfiguration) << refused.error.message();
  EXPECT_NE(refused.error.message().find(text), std::string::npos) << refused.error.message();
}

TEST(MachineBuild, a_machine_that_is_none_is_the_configurations_fault) {
  VmConfig config;
  config.machine.vcpu_count = 33;
  expect_configuration_fault(config, "vcpu_count 33");
}

TEST(MachineBuild, memory_beyond_the_addresses_of_the_hosts_processor_is_the_configurations_fault) {
  VmConfig config;
  config.machine.mem_size_mib = 64 << 10;
  expect_configuration_fault(config, "mem_size_mib 65536 (--memory): must be at most 64512 on this host");
}

TEST(MachineBuild, an_error_is_the_hosts_unless_a_step_says_otherwise) {
  const Error error(ErrorCode::kNotFound, "open KVM device /dev/kvm");
  EXPECT_EQ(BuildError(error).fault, BuildError::Fault::kHost);
  EXPECT_EQ(BuildError::of_configuration(error).fault, BuildError::Fault::kConfiguration);
}

}  // namespace
}  // namespace mayfly
