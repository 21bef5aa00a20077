// The fields of the metrics store. The names are those of the control API's dialect, which dashboards read:
// they never change. Each group is a list of COUNTER, GAUGE and LATENCY with a name and a sentence of help.
#pragma once

// clang-format off

#define MAYFLY_API_SERVER_METRICS(COUNTER, GAUGE, LATENCY) \
  GAUGE(process_startup_time_us, \
      "Time from the request to start the process to the start of its API or, without one, of its microVM") \
  GAUGE(process_startup_time_cpu_us, \
      "CPU time used from the request to start the process to the start of its API or, without one, of its microVM")

#define MAYFLY_DEPRECATED_API_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(deprecated_http_api_calls, "API calls that used something deprecated")

#define MAYFLY_GET_API_REQUESTS_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(instance_info_count, "GET / calls") \
  COUNTER(machine_cfg_count, "GET /machine-config calls") \
  COUNTER(mmds_count, "GET /mmds calls") \
  COUNTER(vmm_version_count, "GET /version calls")

#define MAYFLY_I8042_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(error_count, "Accesses to the keyboard controller that failed") \
  COUNTER(missed_read_count, "Reads that the keyboard controller does not answer") \
  COUNTER(missed_write_count, "Writes that the keyboard controller ignores") \
  COUNTER(read_count, "Reads from the keyboard controller") \
  COUNTER(reset_count, "Resets asked for through the keyboard controller") \
  COUNTER(write_count, "Writes to the keyboard controller")

#define MAYFLY_UART_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(error_count, "Failures of the serial port, on the host side or of its interrupt") \
  COUNTER(flush_count, "Flushes of the serial output") \
  COUNTER(missed_read_count, "Reads from the serial port that failed or hit no register") \
  COUNTER(missed_write_count, "Writes to the serial port that failed or hit no register") \
  COUNTER(read_count, "Reads from registers of the serial port") \
  COUNTER(write_count, "Writes to registers of the serial port") \
  COUNTER(rate_limiter_dropped_bytes, \
      "Bytes of serial output dropped by its rate limiter or because their reader was too slow") \
  COUNTER(lost_input_bytes, "Bytes typed at the console and dropped because the guest did not read")

#define MAYFLY_LATENCIES_METRICS(COUNTER, GAUGE, LATENCY) \
  GAUGE(full_create_snapshot, \
      "Duration of the last full snapshot as the API caller saw it") \
  GAUGE(diff_create_snapshot, \
      "Duration of the last diff snapshot as the API caller saw it") \
  GAUGE(load_snapshot, "Duration of the snapshot load as the API caller saw it") \
  GAUGE(pause_vm, "Duration of the last pause as the API caller saw it") \
  GAUGE(resume_vm, "Duration of the last resume as the API caller saw it") \
  GAUGE(vmm_full_create_snapshot, "Duration of the last full snapshot within the machine") \
  GAUGE(vmm_diff_create_snapshot, "Duration of the last diff snapshot within the machine") \
  GAUGE(vmm_load_snapshot, "Duration of the snapshot load within the machine") \
  GAUGE(vmm_pause_vm, "Duration of the last pause within the machine") \
  GAUGE(vmm_resume_vm, "Duration of the last resume within the machine")

#define MAYFLY_LOGGER_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(missed_metrics_count, "Lines of metrics that could not be written") \
  COUNTER(metrics_fails, "Lines of metrics that could not be made") \
  COUNTER(missed_log_count, "Lines of log that could not be written") \
  COUNTER(rate_limited_log_count, "Lines of log suppressed by the limit of their place")

#define MAYFLY_MMDS_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(rx_accepted, "Frames from the guest taken by the metadata service") \
  COUNTER(rx_accepted_err, "Frames from the guest whose handling in the metadata service failed") \
  COUNTER(rx_accepted_unusual, \
      "Frames from the guest to the metadata service that are well-formed but uncommon") \
  COUNTER(rx_bad_eth, "Frames from the guest that are no Ethernet frames") \
  COUNTER(rx_invalid_token, "Requests to the metadata service with a token that is not valid") \
  COUNTER(rx_no_token, "Requests to the metadata service without the token that it demands") \
  COUNTER(rx_count, "Successful receptions by the metadata service") \
  COUNTER(tx_bytes, "Bytes sent to the guest by the metadata service") \
  COUNTER(tx_count, "Successful transmissions by the metadata service") \
  COUNTER(tx_errors, "Transmissions by the metadata service that failed") \
  COUNTER(tx_frames, "Frames sent to the guest by the metadata service") \
  COUNTER(connections_created, "TCP connections that the metadata service accepted") \
  COUNTER(connections_destroyed, "TCP connections of the metadata service that ended")

#define MAYFLY_PATCH_API_REQUESTS_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(drive_count, "PATCH /drives/{id} calls") \
  COUNTER(drive_fails, "PATCH /drives/{id} calls that were refused") \
  COUNTER(network_count, "PATCH /network-interfaces/{id} calls") \
  COUNTER(network_fails, "PATCH /network-interfaces/{id} calls that were refused") \
  COUNTER(machine_cfg_count, "PATCH /machine-config calls") \
  COUNTER(machine_cfg_fails, "PATCH /machine-config calls that were refused") \
  COUNTER(mmds_count, "PATCH /mmds calls") \
  COUNTER(mmds_fails, "PATCH /mmds calls that were refused")

#define MAYFLY_PUT_API_REQUESTS_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(actions_count, "PUT /actions calls") \
  COUNTER(actions_fails, "PUT /actions calls that were refused") \
  COUNTER(boot_source_count, "PUT /boot-source calls") \
  COUNTER(boot_source_fails, "PUT /boot-source calls that were refused") \
  COUNTER(drive_count, "PUT /drives/{id} calls") \
  COUNTER(drive_fails, "PUT /drives/{id} calls that were refused") \
  COUNTER(logger_count, "PUT /logger calls") \
  COUNTER(logger_fails, "PUT /logger calls that were refused") \
  COUNTER(machine_cfg_count, "PUT /machine-config calls") \
  COUNTER(machine_cfg_fails, "PUT /machine-config calls that were refused") \
  COUNTER(cpu_cfg_count, "PUT /cpu-config calls") \
  COUNTER(cpu_cfg_fails, "PUT /cpu-config calls that were refused") \
  COUNTER(metrics_count, "PUT /metrics calls") \
  COUNTER(metrics_fails, "PUT /metrics calls that were refused") \
  COUNTER(network_count, "PUT /network-interfaces/{id} calls") \
  COUNTER(network_fails, "PUT /network-interfaces/{id} calls that were refused") \
  COUNTER(mmds_count, "PUT /mmds calls") \
  COUNTER(mmds_fails, "PUT /mmds calls that were refused") \
  COUNTER(serial_count, "PUT /serial calls") \
  COUNTER(serial_fails, "PUT /serial calls that were refused")

#define MAYFLY_SECCOMP_METRICS(COUNTER, GAUGE, LATENCY) \
  GAUGE(num_faults, "Whether a system call that the filter forbids was tried")

#define MAYFLY_VCPU_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(exit_io_in, "VM exits for port reads") \
  COUNTER(exit_io_out, "VM exits for port writes") \
  COUNTER(exit_mmio_read, "VM exits for MMIO reads") \
  COUNTER(exit_mmio_write, "VM exits for MMIO writes") \
  COUNTER(failures, "VM exits that end a vCPU by an error") \
  COUNTER(kvmclock_ctrl_fails, "Failures to tell the guest that it was paused (KVM_KVMCLOCK_CTRL)") \
  LATENCY(exit_io_in_agg, "Handling of VM exits for port reads") \
  LATENCY(exit_io_out_agg, "Handling of VM exits for port writes") \
  LATENCY(exit_mmio_read_agg, "Handling of VM exits for MMIO reads") \
  LATENCY(exit_mmio_write_agg, "Handling of VM exits for MMIO writes")

#define MAYFLY_VMM_METRICS(COUNTER, GAUGE, LATENCY) \
  GAUGE(panic_count, "Whether a broken invariant of the monitor ended it") \
  COUNTER(unknown_port_accesses, "Accesses of the guest to ports without a device") \
  COUNTER(unknown_mmio_accesses, "Accesses of the guest to MMIO addresses without a device")

#define MAYFLY_SIGNALS_METRICS(COUNTER, GAUGE, LATENCY) \
  GAUGE(sigbus, "Whether SIGBUS ended the monitor") \
  GAUGE(sigsegv, "Whether SIGSEGV ended the monitor") \
  COUNTER(sigxfsz, "SIGXFSZ signals: writes beyond the file size limit, which fail") \
  GAUGE(sigxcpu, "Whether SIGXCPU ended the monitor") \
  COUNTER(sigpipe, "SIGPIPE signals") \
  GAUGE(sighup, "Whether SIGHUP ended the monitor") \
  GAUGE(sigill, "Whether SIGILL ended the monitor")

#define MAYFLY_INTERRUPTS_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(triggers, "Interrupts raised by devices") \
  COUNTER(config_updates, "Interrupts raised for a change of a device configuration")

#define MAYFLY_BLOCK_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(activate_fails, "Activations of the device that failed") \
  COUNTER(cfg_fails, "Accesses to the configuration space that failed") \
  COUNTER(no_avail_buffer, "Wake-ups that found no request in the queue") \
  COUNTER(event_fails, "Events of the device whose handling failed") \
  COUNTER(execute_fails, "Requests that failed on the host") \
  COUNTER(invalid_reqs_count, "Requests that are malformed") \
  COUNTER(flush_count, "Flush requests done") \
  COUNTER(queue_event_count, "Doorbell events") \
  COUNTER(rate_limiter_event_count, "Rate limiter refills that woke the device") \
  COUNTER(update_count, "Updates of the backing file") \
  COUNTER(update_fails, "Updates of the backing file that failed") \
  COUNTER(read_bytes, "Bytes read by the guest") \
  COUNTER(write_bytes, "Bytes written by the guest") \
  COUNTER(read_count, "Read requests done") \
  COUNTER(write_count, "Write requests done") \
  LATENCY(read_agg, "Read requests") \
  LATENCY(write_agg, "Write requests") \
  COUNTER(rate_limiter_throttled_events, "Requests held back by the rate limiter") \
  COUNTER(io_engine_throttled_events, "Requests held back because the I/O engine was full") \
  COUNTER(remaining_reqs_count, "Requests left in the queue when a wake-up ended")

#define MAYFLY_NET_METRICS(COUNTER, GAUGE, LATENCY) \
  COUNTER(activate_fails, "Activations of the device that failed") \
  COUNTER(cfg_fails, "Accesses to the configuration space that failed") \
  COUNTER(no_rx_avail_buffer, "Frames that found no receive buffer of the guest") \
  COUNTER(no_tx_avail_buffer, "Wake-ups that found no frame in the transmit queue") \
  COUNTER(event_fails, "Events of the device whose handling failed") \
  COUNTER(rx_queue_event_count, "Doorbell events of the receive queue") \
  COUNTER(rx_event_rate_limiter_count, "Receive rate limiter refills that woke the device") \
  COUNTER(rx_rate_limiter_throttled, "Frames to the guest held back by the rate limiter") \
  COUNTER(rx_tap_event_count, "Events of the tap") \
  COUNTER(rx_bytes_count, "Bytes given to the guest") \
  COUNTER(rx_packets_count, "Frames given to the guest") \
  COUNTER(rx_fails, "Frames to the guest that were lost to an error") \
  COUNTER(rx_count, "Successful receive operations") \
  COUNTER(tap_read_fails, "Reads from the tap that failed") \
  COUNTER(tap_write_fails, "Writes to the tap that failed") \
  LATENCY(tap_write_agg, "Writes to the tap") \
  COUNTER(tx_bytes_count, "Bytes sent by the guest") \
  COUNTER(tx_malformed_frames, "Frames of the guest that are malformed") \
  COUNTER(tx_fails, "Frames of the guest that were lost to an error") \
  COUNTER(tx_count, "Successful transmit operations") \
  COUNTER(tx_packets_count, "Frames sent by the guest") \
  COUNTER(tx_queue_event_count, "Doorbell events of the transmit queue") \
  COUNTER(tx_rate_limiter_event_count, "Transmit rate limiter refills that woke the device") \
  COUNTER(tx_rate_limiter_throttled, "Frames of the guest held back by the rate limiter") \
  COUNTER(tx_spoofed_mac_count, "Frames of the guest with another MAC address than the configured one") \
  COUNTER(tx_remaining_reqs_count, "Frames left in the transmit queue when a wake-up ended")

// Every group: GROUP(struct, list of its fields).
#define MAYFLY_METRIC_GROUPS(GROUP) \
  GROUP(ApiServerMetrics, MAYFLY_API_SERVER_METRICS) \
  GROUP(DeprecatedApiMetrics, MAYFLY_DEPRECATED_API_METRICS) \
  GROUP(GetApiRequestsMetrics, MAYFLY_GET_API_REQUESTS_METRICS) \
  GROUP(I8042Metrics, MAYFLY_I8042_METRICS) \
  GROUP(UartMetrics, MAYFLY_UART_METRICS) \
  GROUP(LatenciesMetrics, MAYFLY_LATENCIES_METRICS) \
  GROUP(LoggerMetrics, MAYFLY_LOGGER_METRICS) \
  GROUP(MmdsMetrics, MAYFLY_MMDS_METRICS) \
  GROUP(PatchApiRequestsMetrics, MAYFLY_PATCH_API_REQUESTS_METRICS) \
  GROUP(PutApiRequestsMetrics, MAYFLY_PUT_API_REQUESTS_METRICS) \
  GROUP(SeccompMetrics, MAYFLY_SECCOMP_METRICS) \
  GROUP(VcpuMetrics, MAYFLY_VCPU_METRICS) \
  GROUP(VmmMetrics, MAYFLY_VMM_METRICS) \
  GROUP(SignalsMetrics, MAYFLY_SIGNALS_METRICS) \
  GROUP(InterruptsMetrics, MAYFLY_INTERRUPTS_METRICS) \
  GROUP(BlockMetrics, MAYFLY_BLOCK_METRICS) \
  GROUP(NetMetrics, MAYFLY_NET_METRICS)

// clang-format on
