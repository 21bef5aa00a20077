// The control API's calls: from an HTTP request to what the microVM does, and back.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "api/http/http_server.h"
#include "api/log_sections.h"
#include "api/monitor_gate.h"
#include "api/sections.h"
#include "base/metrics.h"
#include "base/result.h"
#include "base/worker_thread.h"
#include "vmm/micro_vm.h"

namespace mayfly::api {

// What the log and the metrics are called among a microVM's outputs.
inline constexpr const char* kLogRole = "the log";
inline constexpr const char* kMetricsRole = "the metrics";

// Who the microVM is, as GET / and GET /version tell.
struct Identity {
  std::string instance_id;
  std::string monitor_version;  // "0.1.0"
};

// When a call is allowed, by the microVM's state.
enum class When : std::uint8_t { kBeforeStart, kAfterStart, kAlways };

// Answers every request, whatever it is: 200 or 204, or a refusal with {"fault_message": "..."}, which has
// changed nothing. One thread at a time calls it; it never throws.
class Router {
 public:
  // `gate`, `files` and `vm` are borrowed; `vm` is used inside the gate only, and `files` is the thread for
  // the files of snapshots. The sections are those of the configuration file, if there was one.
  Router(Identity identity, MonitorGate& gate, WorkerThread& files, MicroVm& vm,
         std::optional<LoggerSection> logger, std::optional<MetricsSection> metrics);
  Router(const Router&) = delete;
  Router& operator=(const Router&) = delete;
  ~Router() = default;

  HttpResponse handle(const HttpRequest& request) noexcept;

  // For the test that compares them with what is documented: every call as "PUT /drives/{id}".
  static std::vector<std::string> calls();

 private:
  struct Call;
  struct Route;
  struct Action;
  // Nothing: 204.
  using Answer = Result<std::optional<HttpResponse>>;

  static const std::vector<Route>& routes();
  HttpResponse answer(const HttpRequest& request);
  Answer serve(const Route& route, const HttpRequest& request, std::string id);

  static Result<void> apply(MicroVm& vm, const MachineSection& section);

  using Work = std::function<Result<void>(MicroVm&)>;
  // Runs `work` with the microVM on the monitor's thread, if its state allows the call, or `what`.
  Result<void> with_vm(const Call& call, const Work& work);
  Result<void> with_vm(When when, const std::string& what, const Work& work);

  Answer get_instance(const Call& call);
  Answer get_version(const Call& call);
  Answer get_configuration(const Call& call);
  Answer get_machine_config(const Call& call);
  Answer put_machine_config(const Call& call);
  Answer patch_machine_config(const Call& call);
  Answer put_cpu_config(const Call& call);
  Answer put_boot_source(const Call& call);
  Answer put_drive(const Call& call);
  Answer patch_drive(const Call& call);
  Answer put_network(const Call& call);
  Answer patch_network(const Call& call);
  Answer put_logger(const Call& call);
  Answer put_metrics(const Call& call);
  Answer put_serial(const Call& call);
  Answer get_mmds(const Call& call);
  Answer put_mmds(const Call& call);
  Answer patch_mmds(const Call& call);
  Answer put_mmds_config(const Call& call);
  Answer patch_vm(const Call& call);
  Answer put_action(const Call& call);
  Answer get_events(const Call& call);
  Answer get_metrics(const Call& call);
  Answer refuse_device(const Call& call);
  Answer put_snapshot_create(const Call& call);
  Result<void> take_snapshot(const Call& call, const SnapshotRequest& request);
  template <typename Step>
  auto on_files(const Step& step);
  Answer put_snapshot_load(const Call& call);
  Answer put_working_set(const Call& call);

  const Identity identity_;
  MonitorGate& gate_;
  WorkerThread& files_;
  MicroVm& vm_;
  const std::shared_ptr<Mmds> metadata_;
  std::optional<LoggerSection> logger_;
  std::optional<MetricsSection> metrics_;
};

}  // namespace mayfly::api
