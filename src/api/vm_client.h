// What a person asks of a running microVM, over its control API.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "api/http/http_client.h"
#include "base/result.h"
#include "vmm/snapshot_job.h"

namespace mayfly::api {

// As the one who answers at the socket tells it, which may be anybody: `id` and `state` are any texts of at
// most kMaxState bytes.
struct VmStatus {
  static constexpr std::size_t kMaxState = 64;
  std::string id;
  std::string state;  // "Not started", "Running", "Paused"
  std::uint64_t vcpu_count = 0;
  std::uint64_t mem_size_mib = 0;
};

// Every call has its own connection and its own time. A refusal is an error (kUnsupported) with the
// fault_message as it came: it is shown escaped, or not at all. Thread-safe.
class VmClient {
 public:
  // `limits`: of every call.
  VmClient(std::string socket_path, const HttpClientLimits& limits) : http_(std::move(socket_path), limits) {}

  Result<VmStatus> status() const;  // two calls
  Result<std::string> id() const;   // a template has one as well
  Result<void> pause() const;
  Result<void> resume() const;
  Result<void> send_ctrl_alt_del() const;
  // Paths as the microVM's monitor sees them.
  Result<void> create_snapshot(const SnapshotRequest& request) const;
  // Of the working set that is being recorded; the same of its path.
  Result<void> write_working_set(const std::string& path) const;
  // Prometheus' text format, as it came.
  Result<std::string> metrics() const;
  // The configuration as a text that --config-file takes, indented.
  Result<std::string> configuration() const;

 private:
  Result<std::string> get(const std::string& path) const;
  Result<void> change(const std::string& method, const std::string& path, std::string_view body) const;

  HttpClient http_;
};

}  // namespace mayfly::api
