#include "kvm/vcpu_exit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "kvm/vcpu.h"

namespace mayfly {
namespace {

using testing::ElementsAre;

// The area that a vCPU shares with the kernel: a kvm_run and a page of port data behind it.
class Area {
 public:
  static constexpr std::size_t kSize = 8192;

  Area() { std::memset(&storage_, 0, sizeof storage_); }
  kvm_run& run() { return storage_.run; }
  std::uint8_t* bytes() { return storage_.bytes.data(); }
  Result<VcpuExit> decode() { return decode_exit(run(), kSize); }
  template <typename T>
  T decode_as() {
    return std::get<T>(decode().value());
  }

 private:
  union Storage {
    kvm_run run;
    std::array<std::uint8_t, kSize> bytes;
  } storage_;
};

TEST(VcpuExit, a_port_write_is_decoded_with_its_data) {
  Area area;
  area.run().exit_reason = KVM_EXIT_IO;
  area.run().io.direction = KVM_EXIT_IO_OUT;
  area.run().io.port = 0x3f8;
  area.run().io.size = 1;
  area.run().io.count = 3;
  area.run().io.data_offset = 4096;
  std::memcpy(area.bytes() + 4096, "abc", 3);
  const auto write = area.decode_as<PortWrite>();
  EXPECT_EQ(write.port, 0x3f8);
  EXPECT_EQ(write.size, 1);
  EXPECT_EQ(write.count, 3U);
  EXPECT_THAT(write.data, ElementsAre('a', 'b', 'c'));
}

TEST(VcpuExit, a_port_read_is_answered_in_the_shared_area) {
  Area area;
  area.run().exit_reason = KVM_EXIT_IO;
  area.run().io.direction = KVM_EXIT_IO_IN;
  area.run().io.port = 0xffff;
  area.run().io.size = 4;
  area.run().io.count = 2;
  area.run().io.data_offset = 4096;
  const auto read = area.decode_as<PortRead>();
  EXPECT_EQ(read.port, 0xffff);
  ASSERT_EQ(read.data.size(), 8U);
  read.data[7] = 0x5a;
  EXPECT_EQ(area.bytes()[4096 + 7], 0x5a);
}

TEST(VcpuExit, port_data_up_to_the_end_of_the_area_is_fine_and_beyond_is_an_error) {
  Area area;
  area.run().exit_reason = KVM_EXIT_IO;
  area.run().io.size = 4;
  area.run().io.count = 1024;
  area.run().io.data_offset = 4096;
  EXPECT_TRUE(area.decode().has_value());
  area.run().io.data_offset = 4097;
  EXPECT_EQ(area.decode().error().code(), ErrorCode::kInternal);
  area.run().io.data_offset = Area::kSize + 1;
  area.run().io.count = 0;
  EXPECT_FALSE(area.decode().has_value());
  area.run().io.data_offset = ~0ULL;
  area.run().io.count = ~0U;
  EXPECT_FALSE(area.decode().has_value());
  area.run().io.data_offset = 4096;
  area.run().io.count = 1;
  area.run().io.size = 0;
  EXPECT_FALSE(area.decode().has_value());
}

TEST(VcpuExit, mmio_of_each_size_is_decoded) {
  for (std::uint32_t size = 1; size <= 8; ++size) {
    Area area;
    area.run().exit_reason = KVM_EXIT_MMIO;
    area.run().mmio.phys_addr = 0xc0001050;
    area.run().mmio.len = size;
    area.run().mmio.data[size - 1] = 0x77;
    const auto read = area.decode_as<MmioRead>();
    EXPECT_EQ(read.address, 0xc0001050U);
    EXPECT_EQ(read.data.size(), size);
    area.run().mmio.is_write = 1;
    const auto write = area.decode_as<MmioWrite>();
    EXPECT_EQ(write.address, 0xc0001050U);
    EXPECT_EQ(write.data.size(), size);
    EXPECT_EQ(write.data.back(), 0x77);
  }
  for (const std::uint32_t size : {0U, 9U, ~0U}) {
    Area area;
    area.run().exit_reason = KVM_EXIT_MMIO;
    area.run().mmio.len = size;
    EXPECT_EQ(area.decode().error().code(), ErrorCode::kInternal);
  }
}

TEST(VcpuExit, exits_without_data_are_told_apart) {
  Area area;
  area.run().exit_reason = KVM_EXIT_HLT;
  area.decode_as<Halted>();
  area.run().exit_reason = KVM_EXIT_SHUTDOWN;
  area.decode_as<GuestShutdown>();
  area.run().exit_reason = KVM_EXIT_INTR;
  area.decode_as<Interrupted>();
}

TEST(VcpuExit, ends_of_a_guest_carry_their_reasons) {
  Area area;
  area.run().exit_reason = KVM_EXIT_SYSTEM_EVENT;
  area.run().system_event.type = KVM_SYSTEM_EVENT_RESET;
  EXPECT_EQ(area.decode_as<SystemEvent>().type, static_cast<std::uint32_t>(KVM_SYSTEM_EVENT_RESET));

  area.run().exit_reason = KVM_EXIT_FAIL_ENTRY;
  area.run().fail_entry.hardware_entry_failure_reason = 0x80000021;
  area.run().fail_entry.cpu = 3;
  EXPECT_EQ(area.decode_as<EntryFailed>().hardware_reason, 0x80000021U);
  EXPECT_EQ(area.decode_as<EntryFailed>().cpu, 3U);

  area.run().exit_reason = 39;
  const std::array<std::uint64_t, 3> fault = {8, 0x1234000, 4096};
  std::memcpy(area.run().padding, fault.data(), sizeof fault);
  EXPECT_EQ(area.decode_as<MemoryFaulted>().flags, 8U);
  EXPECT_EQ(area.decode_as<MemoryFaulted>().address, 0x1234000U);
  EXPECT_EQ(area.decode_as<MemoryFaulted>().size, 4096U);
}

TEST(VcpuExit, internal_error_data_is_bounded) {
  Area area;
  area.run().exit_reason = KVM_EXIT_INTERNAL_ERROR;
  area.run().internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
  area.run().internal.ndata = 2;
  area.run().internal.data[1] = 42;
  EXPECT_EQ(area.decode_as<InternalError>().suberror, 1U);
  EXPECT_EQ(area.decode_as<InternalError>().data_count, 2U);
  EXPECT_EQ(area.decode_as<InternalError>().data[1], 42U);
  area.run().internal.ndata = ~0U;
  EXPECT_EQ(area.decode_as<InternalError>().data_count, 16U);
}

TEST(VcpuExit, any_other_reason_is_handed_on_by_number) {
  Area area;
  for (std::uint32_t reason : {0U, 1U, 3U, 4U, 7U, 11U, 26U, 33U, 37U, 40U, 12345U}) {
    area.run().exit_reason = reason;
    EXPECT_EQ(area.decode_as<OtherExit>().reason, reason);
  }
}

TEST(VcpuExit, reasons_have_the_kernels_names) {
  EXPECT_EQ(exit_reason_name(KVM_EXIT_UNKNOWN), "KVM_EXIT_UNKNOWN");
  EXPECT_EQ(exit_reason_name(KVM_EXIT_SHUTDOWN), "KVM_EXIT_SHUTDOWN");
  EXPECT_EQ(exit_reason_name(KVM_EXIT_INTERNAL_ERROR), "KVM_EXIT_INTERNAL_ERROR");
  EXPECT_EQ(exit_reason_name(KVM_EXIT_SYSTEM_EVENT), "KVM_EXIT_SYSTEM_EVENT");
  EXPECT_EQ(exit_reason_name(KVM_EXIT_X86_RDMSR), "KVM_EXIT_X86_RDMSR");
  EXPECT_EQ(exit_reason_name(KVM_EXIT_NOTIFY), "KVM_EXIT_NOTIFY");
  EXPECT_EQ(exit_reason_name(39), "KVM_EXIT_MEMORY_FAULT");
  EXPECT_EQ(exit_reason_name(40), "KVM_EXIT_?");
  EXPECT_EQ(internal_error_name(1), "KVM_INTERNAL_ERROR_EMULATION");
  EXPECT_EQ(internal_error_name(99), "KVM_INTERNAL_ERROR_?");
}

}  // namespace
}  // namespace mayfly
