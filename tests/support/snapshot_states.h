// A microVM's state with something in every field, for the tests of its encoding.
#pragma once

#include <linux/kvm.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <type_traits>

#include "kvm/x86_64/saved_state.h"
#include "snapshot/micro_vm_state.h"

namespace mayfly::testing {

// Bytes that are not each other's neighbours'.
template <typename T>
void fill_bytes(T& value, unsigned seed) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::array<std::uint8_t, sizeof(T)> bytes{};
  for (std::size_t index = 0; index < bytes.size(); ++index) {
    bytes.at(index) = static_cast<std::uint8_t>(seed + 31 * index);
  }
  std::memcpy(&value, bytes.data(), bytes.size());
}

inline kvm_cpuid_entry2 cpuid_vendor(std::string_view name) {
  kvm_cpuid_entry2 entry{};
  entry.eax = 0xd;
  std::memcpy(&entry.ebx, name.data(), 4);
  std::memcpy(&entry.edx, name.data() + 4, 4);
  std::memcpy(&entry.ecx, name.data() + 8, 4);
  return entry;
}

inline x86_64::VcpuState sample_vcpu(std::uint32_t id) {
  x86_64::VcpuState vcpu;
  vcpu.id = id;
  vcpu.cpuid.push_back(cpuid_vendor("AuthenticAMD"));
  kvm_cpuid_entry2 brand{};
  brand.function = 0x80000002;
  std::memcpy(&brand.eax, "  EPYC 9", 8);
  std::memcpy(&brand.ecx, "999\x1b", 5);
  vcpu.cpuid.push_back(brand);
  vcpu.mp_state.mp_state = KVM_MP_STATE_HALTED;
  vcpu.tsc_khz = 2'450'000;
  fill_bytes(vcpu.registers, 1 + id);
  fill_bytes(vcpu.special, 2);
  vcpu.xsave.assign(x86_64::kSmallestXsave, std::byte{0x5a});
  fill_bytes(vcpu.extended_control, 3);
  vcpu.extended_control.nr_xcrs = 1;
  fill_bytes(vcpu.debug, 4);
  fill_bytes(vcpu.local_apic, 5);
  vcpu.msrs.push_back({.index = 0x10, .reserved = 0, .data = 0x123456789abcdef0});
  vcpu.msrs.push_back({.index = 0xc0000080, .reserved = 0, .data = 0xd01});
  fill_bytes(vcpu.events, 6);
  return vcpu;
}

inline RateLimiterState sample_limiter() {
  return {.bandwidth = TokenBucketState{.config = {.size = 100, .refill_time_ms = 200, .one_time_burst = 300},
                                        .tokens = 40,
                                        .fraction = 50,
                                        .debt = 0,
                                        .burst = 60},
          .ops = std::nullopt};
}

inline MmioTransportState sample_registers() {
  return {.status = 15,
          .device_features_select = 1,
          .driver_features_select = 1,
          .driver_features = 0x100000020,
          .unknown_features = false,
          .queue_select = 2,
          .interrupt_status = 1,
          .generation = 7,
          .queues = {{.size = 256,
                      .ready = true,
                      .descriptor_table = 0x10000,
                      .available_ring = 0x11000,
                      .used_ring = 0x12000},
                     {}}};
}

inline MicroVmState sample_state(std::uint32_t vcpus = 1) {
  MicroVmState state;
  state.created_ns = 1'709'251'199'000'000'001;  // 2024-02-29
  state.producer = "mayfly 0.1.0";
  state.machine = {
      .vcpu_count = vcpus, .smt = false, .track_dirty_pages = true, .huge_pages = SavedPages::kTransparent};
  state.memory = {{.address = 0, .size = 0xc0000000}, {.address = 0x100000000, .size = 0x1000}};
  state.boot = SavedBoot{.kernel_image_path = "/boot/vmlinux",
                         .initrd_path = "/boot/initrd",
                         .boot_args = "console=ttyS0",
                         .protocol = BootProtocolChoice::kPvh};
  state.cpu_template = x86_64::CpuTemplate{
      .capabilities = {{.number = 171, .required = true}},
      .cpuid = {{.leaf = 7,
                 .subleaf = 0,
                 .flags = 1,
                 .registers = {{.reg = x86_64::CpuidRegister::kEbx, .bits = {.mask = 0x20, .value = 0}}}}},
      .msrs = {{.index = 0x10a, .bits = {.mask = 0xff, .value = 0x0c}}}};
  for (std::uint32_t id = 0; id < vcpus; ++id) {
    state.vcpus.push_back(sample_vcpu(id));
  }
  fill_bytes(state.platform.first_pic, 7);
  fill_bytes(state.platform.second_pic, 8);
  fill_bytes(state.platform.io_apic, 9);
  fill_bytes(state.platform.timer, 10);
  state.clock.clock = 987'654'321;
  state.clock.flags = KVM_CLOCK_TSC_STABLE;
  state.clock.realtime = 1'709'251'199'000'000'000;
  state.clock.host_tsc = 5'000'000;
  state.serial.interrupt_enable = 5;
  state.serial.scratch = 0xa5;
  state.serial.received_count = 2;
  state.serial.received = {'h', 'i'};
  state.serial.returned_count = 1;
  state.serial.returned = {'!'};
  state.power = {.sleep_type = 5, .wake_status = true};
  SavedDrive& drive = state.drives.emplace_back();
  drive.sectors = 2048;
  drive.config.id = "rootfs";
  drive.config.path = "/images/root\n.ext4";
  drive.config.is_root = true;
  drive.config.partuuid = "0eaa91a0-01";
  drive.config.cache_type = BlockCacheType::kWriteback;
  drive.config.engine = BlockEngineType::kAsync;
  drive.config.queue_count = 2;
  drive.config.overlay.emplace().path = "/images/overlay";
  drive.registers = sample_registers();
  drive.state.features = 0x100000020;
  drive.state.writeback = true;
  drive.state.rate_limiter = sample_limiter();
  drive.state.queues = {VirtQueueState{.next_available = 5, .next_used = 4}, std::nullopt};
  SavedNetwork& tap = state.networks.emplace_back();
  tap.slot = 1;
  tap.config.id = "eth0";
  tap.config.backend = TapConfig{.name = "tap0"};
  tap.config.mac = MacAddress{{6, 0, 0xac, 0x10, 0, 2}};
  tap.config.mtu = 1400;
  tap.config.rx_rate_limiter.ops = TokenBucketConfig{.size = 5, .refill_time_ms = 10};
  tap.registers = sample_registers();
  tap.state.mac = *tap.config.mac;
  tap.state.features = 0x100000020;
  tap.state.live = true;
  tap.state.link_up = false;
  tap.state.queues = {VirtQueueState{.next_available = 9, .next_used = 8},
                      VirtQueueState{.next_available = 7, .next_used = 7}};
  tap.state.tx_rate_limiter = sample_limiter();
  SavedNetwork& user = state.networks.emplace_back();
  user.slot = 2;
  user.config.id = "eth1";
  user.config.backend = UserNetConfig{
      .forwards = {{.protocol = PortForward::Protocol::kUdp, .host_port = 8080, .guest_port = 80}},
      .host_loopback = true};
  user.state.mac = MacAddress{{2, 0, 0, 0, 0, 9}};
  state.mark = SnapshotMark{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  state.mmds = MmdsConfig{.network_interfaces = {"eth0"}, .version = MmdsVersion::kV2, .imds_compat = true};
  return state;
}

}  // namespace mayfly::testing
