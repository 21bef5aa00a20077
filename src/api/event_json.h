// A microVM's events as GET /events sends them.
#pragma once

#include <cstddef>
#include <string>

#include "vmm/micro_vm_event.h"

namespace mayfly::api {

// The event's name: "running", "device-error" ...
const char* event_name(MicroVmEvent::Kind kind);

// One JSON object of at most `max_bytes` (256 or more): a detail that would make it longer is cut.
std::string event_json(const MicroVmEvent& event, const std::string& instance_id, std::size_t max_bytes);

}  // namespace mayfly::api
