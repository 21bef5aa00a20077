#include "kvm/x86_64/vcpu_state.h"

#include <gtest/gtest.h>

#include <cstring>

namespace mayfly::x86_64 {
namespace {

std::uint32_t word_at(const kvm_lapic_state& state, std::size_t offset) {
  std::uint32_t value = 0;
  std::memcpy(&value, &state.regs[offset], sizeof value);
  return value;
}

TEST(LocalVectors, pins_are_connected_as_firmware_does_and_nothing_else_changes) {
  kvm_lapic_state before{};
  for (std::size_t i = 0; i < sizeof before.regs; ++i) {
    before.regs[i] = static_cast<char>(i * 7);
  }
  // Masked and delivering fixed vectors, as after reset (SDM volume 3, 11.4.7.1).
  for (const std::size_t offset : {0x350U, 0x360U}) {
    const std::uint32_t reset = 0x00010000;
    std::memcpy(&before.regs[offset], &reset, sizeof reset);
  }
  kvm_lapic_state after = before;
  set_local_vectors(after);
  EXPECT_EQ(word_at(after, 0x350), 0x700U);
  EXPECT_EQ(word_at(after, 0x360), 0x400U);
  std::memcpy(&after.regs[0x350], &before.regs[0x350], 4);
  std::memcpy(&after.regs[0x360], &before.regs[0x360], 4);
  EXPECT_EQ(std::memcmp(&after, &before, sizeof after), 0);
}

TEST(LocalVectors, other_bits_of_the_two_registers_stay) {
  kvm_lapic_state state{};
  const std::uint32_t level_and_vector = 0x00018055;
  std::memcpy(&state.regs[0x350], &level_and_vector, sizeof level_and_vector);
  set_local_vectors(state);
  EXPECT_EQ(word_at(state, 0x350), 0x00008755U);
}

TEST(InitialFpu, is_what_reset_leaves_for_software_to_use) {
  const kvm_fpu state = initial_fpu();
  EXPECT_EQ(state.fcw, 0x37f);
  EXPECT_EQ(state.mxcsr, 0x1f80U);
  EXPECT_EQ(state.fsw, 0);
}

}  // namespace
}  // namespace mayfly::x86_64
