#include "api/event_json.h"

#include <nlohmann/json.hpp>

namespace mayfly::api {
namespace {

using nlohmann::json;

const char* outcome_name(OutcomeKind kind) {
  switch (kind) {
    case OutcomeKind::kGuestReset:
      return "guest-reset";
    case OutcomeKind::kGuestPowerOff:
      return "guest-power-off";
    case OutcomeKind::kStopped:
      return "stopped";
    case OutcomeKind::kTripleFault:
      return "triple-fault";
    case OutcomeKind::kGuestCrash:
      return "guest-crash";
    case OutcomeKind::kVcpuFailed:
      return "vcpu-failed";
  }
  return "";
}

}  // namespace

const char* event_name(MicroVmEvent::Kind kind) {
  switch (kind) {
    case MicroVmEvent::Kind::kStarting:
      return "starting";
    case MicroVmEvent::Kind::kStartFailed:
      return "start-failed";
    case MicroVmEvent::Kind::kRunning:
      return "running";
    case MicroVmEvent::Kind::kBootMark:
      return "boot-mark";
    case MicroVmEvent::Kind::kPaused:
      return "paused";
    case MicroVmEvent::Kind::kResumed:
      return "resumed";
    case MicroVmEvent::Kind::kDeviceError:
      return "device-error";
    case MicroVmEvent::Kind::kEnded:
      return "ended";
  }
  return "";
}

std::string event_json(const MicroVmEvent& event, const std::string& instance_id, std::size_t max_bytes) {
  std::string detail = event.outcome ? event.outcome->detail : event.detail;
  for (;;) {
    json data = {{"event", event_name(event.kind)}, {"id", instance_id}, {"time_us", event.time_us}};
    if (event.outcome) {
      data["outcome"] = outcome_name(event.outcome->kind);
      data["exit_code"] = exit_code_of(event.outcome->kind);
    }
    if (!event.device.empty()) {
      data["device"] = event.device;
    }
    if (!detail.empty()) {
      data["detail"] = detail;
    }
    std::string text = data.dump(-1, ' ', false, json::error_handler_t::replace);
    if (text.size() <= max_bytes || detail.empty()) {
      return text;
    }
    detail.resize(detail.size() / 2);
  }
}

}  // namespace mayfly::api
