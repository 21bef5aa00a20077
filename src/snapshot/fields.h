// How each structure of a snapshot is written: its fields, in the order of the file. See codec.h.
#pragma once

#include <linux/kvm.h>

#include "devices/virtio/queue/virt_queue.h"
#include "rate_limiter/rate_limiter.h"
#include "snapshot/arch.h"
#include "snapshot/codec.h"
#include "snapshot/micro_vm_state.h"

namespace mayfly::snapshot_detail {

template <>
struct LastOf<SavedPages> {
  static constexpr auto kValue = SavedPages::k2M;
};
template <>
struct LastOf<BootProtocolChoice> {
  static constexpr auto kValue = BootProtocolChoice::kLinux64;
};
template <>
struct LastOf<BlockCacheType> {
  static constexpr auto kValue = BlockCacheType::kWriteback;
};
template <>
struct LastOf<BlockEngineType> {
  static constexpr auto kValue = BlockEngineType::kAsync;
};
template <>
struct LastOf<PortForward::Protocol> {
  static constexpr auto kValue = PortForward::Protocol::kUdp;
};
template <>
struct LastOf<MmdsVersion> {
  static constexpr auto kValue = MmdsVersion::kV2;
};

template <typename Codec>
void fields(Codec& codec, Coded<Codec, SavedMachine>& value) {
  auto& [vcpu_count, smt, track_dirty_pages, huge_pages] = value;
  all(codec, vcpu_count, smt, track_dirty_pages, huge_pages);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, SavedRange>& value) {
  auto& [address, size] = value;
  all(codec, address, size);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, SavedBoot>& value) {
  auto& [kernel_image_path, initrd_path, boot_args, protocol] = value;
  all(codec, kernel_image_path, initrd_path, boot_args, protocol);
}

// Without its padding.
template <typename Codec>
void fields(Codec& codec, Coded<Codec, kvm_clock_data>& value) {
  all(codec, value.clock, value.flags, value.realtime, value.host_tsc);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, SerialState>& value) {
  auto& [interrupt_enable, fifo_control, line_control, modem_control, modem_delta, scratch, divisor_low,
         divisor_high, overrun, transmit_empty_pending, listens_by_polling, idle_polls, received_count,
         received, received_may_return, returned_count, returned] = value;
  all(codec, interrupt_enable, fifo_control, line_control, modem_control, modem_delta, scratch, divisor_low,
      divisor_high, overrun, transmit_empty_pending, listens_by_polling, idle_polls, received_count, received,
      received_may_return, returned_count, returned);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, PowerState>& value) {
  auto& [sleep_type, wake_status] = value;
  all(codec, sleep_type, wake_status);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, TokenBucketConfig>& value) {
  auto& [size, refill_time_ms, one_time_burst] = value;
  all(codec, size, refill_time_ms, one_time_burst);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, TokenBucketState>& value) {
  auto& [config, tokens, fraction, debt, burst] = value;
  all(codec, config, tokens, fraction, debt, burst);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, RateLimiterConfig>& value) {
  auto& [bandwidth, ops] = value;
  all(codec, bandwidth, ops);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, RateLimiterState>& value) {
  auto& [bandwidth, ops] = value;
  all(codec, bandwidth, ops);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, VirtQueueState>& value) {
  auto& [next_available, next_used] = value;
  all(codec, next_available, next_used);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, MmioQueueRegisters>& value) {
  auto& [size, ready, descriptor_table, available_ring, used_ring] = value;
  all(codec, size, ready, descriptor_table, available_ring, used_ring);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, MmioTransportState>& value) {
  auto& [status, device_features_select, driver_features_select, driver_features, unknown_features,
         queue_select, interrupt_status, generation, queues] = value;
  all(codec, status, device_features_select, driver_features_select, driver_features, unknown_features,
      queue_select, interrupt_status, generation, queues);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, BlockOverlayConfig>& value) {
  auto& [path] = value;
  all(codec, path);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, BlockDeviceConfig>& value) {
  auto& [id, path, is_root, partuuid, read_only, cache_type, engine, discard, queue_count, lock, rate_limiter,
         overlay] = value;
  all(codec, id, path, is_root, partuuid, read_only, cache_type, engine, discard, queue_count, lock,
      rate_limiter, overlay);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, BlockDeviceState>& value) {
  auto& [features, writeback, rate_limiter, queues] = value;
  all(codec, features, writeback, rate_limiter, queues);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, SavedDrive>& value) {
  auto& [slot, sectors, config, registers, state] = value;
  all(codec, slot, sectors, config, registers, state);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, MacAddress>& value) {
  auto& [octets] = value;
  all(codec, octets);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, PortForward>& value) {
  auto& [protocol, host_address, host_port, guest_port] = value;
  all(codec, protocol, host_address, host_port, guest_port);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, TapConfig>& value) {
  auto& [name] = value;
  all(codec, name);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, UserNetConfig>& value) {
  auto& [forwards, host_loopback] = value;
  all(codec, forwards, host_loopback);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, NetDeviceConfig>& value) {
  auto& [id, backend, mac, mtu, queue_pairs, rx_rate_limiter, tx_rate_limiter] = value;
  all(codec, id, backend, mac, mtu, queue_pairs, rx_rate_limiter, tx_rate_limiter);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, NetDeviceState>& value) {
  auto& [mac, features, live, link_up, pairs_in_use, queues, rx_rate_limiter, tx_rate_limiter] = value;
  static_assert(sizeof(pairs_in_use) == 8);
  all(codec, mac, features, live, link_up, pairs_in_use, queues, rx_rate_limiter, tx_rate_limiter);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, SavedNetwork>& value) {
  auto& [slot, config, registers, state] = value;
  all(codec, slot, config, registers, state);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, Ipv4Address>& value) {
  auto& [octets] = value;
  all(codec, octets);
}

template <typename Codec>
void fields(Codec& codec, Coded<Codec, MmdsConfig>& value) {
  auto& [network_interfaces, version, ipv4_address, imds_compat] = value;
  all(codec, network_interfaces, version, ipv4_address, imds_compat);
}

}  // namespace mayfly::snapshot_detail
