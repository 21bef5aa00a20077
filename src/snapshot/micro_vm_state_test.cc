#include "snapshot/micro_vm_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "base/file.h"
#include "support/snapshot_states.h"

namespace mayfly {
namespace {

using ::mayfly::testing::sample_state;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

Bytes encoded(const MicroVmState& state) {
  auto bytes = encode(state);
  EXPECT_TRUE(bytes.has_value()) << bytes.error().message();
  return bytes.value_or(Bytes());
}

Error error_of(std::span<const std::byte> bytes) {
  const auto decoded = decode(bytes);
  EXPECT_FALSE(decoded.has_value());
  return decoded ? Error(ErrorCode::kInternal, "") : decoded.error();
}

// A file of `state` in which `change` was made to its sections, with right checksums.
Bytes resealed(const MicroVmState& state, const std::function<void(SnapshotContainer&)>& change) {
  const Bytes bytes = encoded(state);
  auto container = read_container(bytes).value();
  change(container);
  return write_container(container.header, container.sections);
}

SnapshotSection& section(SnapshotContainer& container, std::string_view name, std::uint32_t index = 0) {
  for (SnapshotSection& each : container.sections) {
    if (each.name == name && each.index == index) {
      return each;
    }
  }
  ADD_FAILURE() << "no section " << name;
  return container.sections.front();
}

Bytes read_golden() {
  const auto text = read_file(MAYFLY_GOLDEN_SNAPSHOT, "the golden snapshot", kMaxSnapshotState);
  EXPECT_TRUE(text.has_value()) << text.error().message();
  Bytes bytes;
  for (const char each : text.value_or("")) {
    bytes.push_back(static_cast<std::byte>(each));
  }
  return bytes;
}

TEST(MicroVmState, what_is_encoded_is_decoded) {
  const MicroVmState state = sample_state(3);
  const Bytes bytes = encoded(state);
  const auto decoded = decode(bytes);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message();
  EXPECT_EQ(encoded(*decoded), bytes);
  EXPECT_EQ(decoded->created_ns, state.created_ns);
  EXPECT_EQ(decoded->producer, "mayfly 0.1.0");
  EXPECT_EQ(decoded->memory, state.memory);
  EXPECT_EQ(decoded->vcpus.at(2).registers.rax, state.vcpus.at(2).registers.rax);
  EXPECT_EQ(decoded->vcpus.at(2).msrs.at(1).data, 0xd01U);
  EXPECT_EQ(decoded->drives.at(0).registers, state.drives.at(0).registers);
  EXPECT_EQ(decoded->drives.at(0).state.rate_limiter, state.drives.at(0).state.rate_limiter);
  EXPECT_EQ(decoded->networks.at(0).config.backend, state.networks.at(0).config.backend);
  EXPECT_EQ(decoded->networks.at(1).config.backend, state.networks.at(1).config.backend);
  EXPECT_EQ(decoded->mmds, state.mmds);
  EXPECT_EQ(decoded->clock.realtime, state.clock.realtime);
}

TEST(MicroVmState, the_least_there_can_be_goes_round) {
  MicroVmState state;
  state.machine.vcpu_count = 1;
  state.memory = {{.address = 0, .size = 4096}};
  state.vcpus.push_back(::mayfly::testing::sample_vcpu(0));
  const Bytes bytes = encoded(state);
  const auto decoded = decode(bytes);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message();
  EXPECT_FALSE(decoded->boot || decoded->mmds || decoded->cpu_template);
  EXPECT_EQ(encoded(*decoded), bytes);
}

TEST(MicroVmState, the_file_of_version_1_0_0_is_read_and_still_written_the_same) {
  const Bytes golden = read_golden();
  ASSERT_FALSE(golden.empty()) << MAYFLY_GOLDEN_SNAPSHOT;
  const auto decoded = decode(golden);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().message();
  EXPECT_EQ(decoded->drives.at(0).config.id, "rootfs");
  EXPECT_TRUE(encoded(sample_state()) == golden)
      << "what a section holds has changed: it needs another version, and its reader the old one";
}

TEST(MicroVmState, every_bit_that_flips_is_noticed) {
  const Bytes whole = encoded(sample_state());
  Bytes bytes = whole;
  for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_FALSE(decode(bytes).has_value()) << "byte " << bit / 8 << ", bit " << bit % 8;
    bytes[bit / 8] = whole[bit / 8];
  }
}

TEST(MicroVmState, every_byte_that_is_missing_at_the_end_is_noticed) {
  const Bytes bytes = encoded(sample_state());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_FALSE(decode(std::span(bytes).first(size)).has_value()) << size;
  }
}

// With right checksums, so that it is the section's own reader that notices.
TEST(MicroVmState, every_section_that_is_shorter_or_longer_than_it_was_is_refused_by_name) {
  const MicroVmState state = sample_state();
  const Bytes whole = encoded(state);
  const auto container = read_container(whole).value();
  for (std::size_t place = 0; place < container.sections.size(); ++place) {
    const std::string title = container.sections[place].title();
    const std::span<const std::byte> payload = container.sections[place].payload;
    for (std::size_t size = 0; size < payload.size(); size += 1 + payload.size() / 512) {
      auto changed = container;
      changed.sections[place].payload = payload.first(size);
      ASSERT_THAT(error_of(write_container(changed.header, changed.sections)).message(), HasSubstr(title))
          << size << " of " << payload.size();
    }
    Bytes longer(payload.begin(), payload.end());
    longer.push_back(std::byte{0});
    auto changed = container;
    changed.sections[place].payload = longer;
    EXPECT_EQ(error_of(write_container(changed.header, changed.sections)).message(),
              "section " + title + ": 1 bytes too many");
  }
}

// With every section that there is.
MicroVmState state_of_a_diff() {
  MicroVmState state = sample_state();
  state.base = SnapshotMark{16, 15, 14};
  return state;
}

TEST(MicroVmState, what_a_diff_is_onto_is_kept) {
  EXPECT_EQ(decode(encode(state_of_a_diff()).value()).value().base, state_of_a_diff().base);
  EXPECT_FALSE(decode(encode(sample_state()).value()).value().base);
}

TEST(MicroVmState, every_section_that_is_missing_is_named_but_what_need_not_be_there) {
  const MicroVmState state = state_of_a_diff();
  for (const char* name : {"machine", "memory", "platform", "clock", "serial", "power"}) {
    const Bytes bytes = resealed(state, [name](SnapshotContainer& container) {
      std::erase_if(container.sections, [name](const SnapshotSection& each) { return each.name == name; });
    });
    EXPECT_EQ(error_of(bytes).message(), "section " + std::string(name) + ": it is missing");
  }
  for (const char* name : {"producer", "boot", "template", "metadata", "drive", "mark", "base"}) {
    const Bytes bytes = resealed(state, [name](SnapshotContainer& container) {
      std::erase_if(container.sections, [name](const SnapshotSection& each) { return each.name == name; });
    });
    EXPECT_TRUE(decode(bytes).has_value()) << name;
  }
  const Bytes bytes = resealed(sample_state(2), [](SnapshotContainer& container) {
    std::erase_if(container.sections,
                  [](const SnapshotSection& each) { return each.name == "vcpu" && each.index == 0; });
  });
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("section vcpu 1: it is there twice, or one before it"));
}

TEST(MicroVmState, sections_may_come_in_any_order_but_not_twice) {
  const MicroVmState state = sample_state(2);
  EXPECT_TRUE(decode(resealed(state, [](SnapshotContainer& container) {
                std::reverse(container.sections.begin(), container.sections.end());
              })).has_value());
  const Bytes twice = resealed(state, [](SnapshotContainer& container) {
    container.sections.push_back(section(container, "serial"));
  });
  EXPECT_THAT(error_of(twice).message(), HasSubstr("section serial 0: it is there twice"));
}

TEST(MicroVmState, an_unknown_section_is_refused_by_name_unless_it_is_optional) {
  SnapshotSection unknown{.name = "balloon", .index = 0, .version = 9};
  const auto with = [&unknown](SnapshotContainer& container) { container.sections.push_back(unknown); };
  const Error error = error_of(resealed(sample_state(), with));
  EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
  EXPECT_THAT(error.message(), HasSubstr("section balloon 0 is unknown"));
  unknown.optional = true;
  EXPECT_TRUE(decode(resealed(sample_state(), with)).has_value());
}

TEST(MicroVmState, a_section_of_another_version_is_refused_by_name) {
  for (const char* name : {"producer", "machine", "memory", "boot", "template", "vcpu", "platform", "clock",
                           "serial", "power", "drive", "network", "metadata", "mark", "base"}) {
    for (const std::uint16_t version : std::array<std::uint16_t, 3>{0, 2, 65535}) {
      const Error error = error_of(resealed(state_of_a_diff(), [name, version](SnapshotContainer& container) {
        section(container, name).version = version;
      }));
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      EXPECT_EQ(error.message(), "section " + std::string(name) + " 0 has version " +
                                     std::to_string(version) + ", this program reads 1: it is " +
                                     (version > 1 ? "newer" : "too old"));
    }
  }
}

TEST(MicroVmState, another_architecture_is_refused_and_a_header_must_say_what_the_sections_do) {
  const auto with = [](const std::function<void(SnapshotHeader&)>& change) {
    return error_of(
        resealed(sample_state(), [&change](SnapshotContainer& container) { change(container.header); }));
  };
  const Error foreign = with([](SnapshotHeader& header) { header.architecture = 2; });
  EXPECT_EQ(foreign.code(), ErrorCode::kUnsupported);
  EXPECT_THAT(foreign.message(), HasSubstr("another processor architecture (2) than x86-64"));
  EXPECT_THAT(with([](SnapshotHeader& header) { header.vendor = 1; }).message(),
              HasSubstr("another processor"));
  EXPECT_THAT(with([](SnapshotHeader& header) { header.memory_size += 4096; }).message(),
              HasSubstr("another memory size"));
  EXPECT_THAT(with([](SnapshotHeader& header) { header.vcpu_count = 2; }).message(),
              HasSubstr("another number of vCPUs"));
}

struct Wrong {
  const char* section;
  std::function<void(MicroVmState&)> change;
};

TEST(MicroVmState, what_contradicts_itself_is_neither_encoded_nor_passes_a_check) {
  const std::vector<Wrong> wrongs = {
      {"memory 0", [](MicroVmState& state) { state.memory.clear(); }},
      {"memory 0", [](MicroVmState& state) { state.memory.resize(17, {.address = 0, .size = 4096}); }},
      {"memory 0", [](MicroVmState& state) { state.memory[0].size = 0; }},
      {"memory 0", [](MicroVmState& state) { state.memory[0].size += 1; }},
      {"memory 0", [](MicroVmState& state) { state.memory[1].address += 1; }},
      {"memory 0", [](MicroVmState& state) { state.memory[1].address = 0xbffff000; }},
      {"memory 0", [](MicroVmState& state) { state.memory[1].size = ~std::uint64_t{0xfff}; }},
      {"memory 0", [](MicroVmState& state) { std::swap(state.memory[0], state.memory[1]); }},
      {"machine 0", [](MicroVmState& state) { state.machine.vcpu_count = 2; }},
      {"machine 0", [](MicroVmState& state) { state.vcpus.clear(); }},
      {"machine 0",
       [](MicroVmState& state) {
         state.vcpus.resize(33, state.vcpus[0]);
         state.machine.vcpu_count = 33;
       }},
      {"vcpu 0", [](MicroVmState& state) { state.vcpus[0].id = 1; }},
      {"vcpu 0", [](MicroVmState& state) { state.vcpus[0].cpuid.clear(); }},
      {"vcpu 0", [](MicroVmState& state) { state.vcpus[0].cpuid.resize(257); }},
      {"vcpu 0", [](MicroVmState& state) { state.vcpus[0].msrs.resize(1025); }},
      {"vcpu 0", [](MicroVmState& state) { state.vcpus[0].xsave.resize(4095); }},
      {"vcpu 0", [](MicroVmState& state) { state.vcpus[0].xsave.resize((64 << 10) + 1); }},
      {"vcpu 0", [](MicroVmState& state) { state.vcpus[0].extended_control.nr_xcrs = 17; }},
      {"template 0",
       [](MicroVmState& state) { state.cpu_template->msrs.push_back(state.cpu_template->msrs[0]); }},
      {"drive 0", [](MicroVmState& state) { state.drives[0].slot = 18; }},
      {"drive 0", [](MicroVmState& state) { state.drives[0].config.id = "no id"; }},
      {"drive 0", [](MicroVmState& state) { state.drives[0].config.queue_count = 17; }},
      {"drive 0", [](MicroVmState& state) { state.drives[0].sectors = ~std::uint64_t{0}; }},
      {"network 0", [](MicroVmState& state) { state.networks[0].slot = 0; }},
      {"network 1", [](MicroVmState& state) { state.networks[1].config.id = "eth0"; }},
      {"network 0", [](MicroVmState& state) { state.networks[0].config.mtu = 1; }},
      {"metadata 0", [](MicroVmState& state) { state.mmds->network_interfaces = {"eth7"}; }},
  };
  for (std::size_t index = 0; index < wrongs.size(); ++index) {
    MicroVmState state = sample_state();
    wrongs[index].change(state);
    const auto checked = state.check();
    ASSERT_FALSE(checked.has_value()) << index;
    EXPECT_EQ(checked.error().code(), ErrorCode::kInvalidImage);
    EXPECT_THAT(checked.error().message(), HasSubstr("section " + std::string(wrongs[index].section)))
        << index;
    EXPECT_EQ(encode(state).error().code(), ErrorCode::kInternal) << index;
  }
}

TEST(MicroVmState, what_contradicts_itself_in_a_file_is_refused) {
  // Two machine sections' worth of vCPUs where there is one.
  const MicroVmState two = sample_state(2);
  const Bytes other = encoded(two);
  const auto machine = read_container(other).value();
  const Bytes bytes = resealed(sample_state(), [&machine](SnapshotContainer& container) {
    SnapshotContainer copy = machine;
    section(container, "machine").payload = section(copy, "machine").payload;
  });
  EXPECT_THAT(error_of(bytes).message(), HasSubstr("section machine 0: 2 vCPUs, of which there are 1"));
}

}  // namespace
}  // namespace mayfly
