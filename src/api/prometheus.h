// The metrics store in Prometheus' text format 0.0.4.
//
// A field of a group is mayfly_<group>_<field>, by that system's rules for names: counters count from the
// start of the process, end in _total and lose their _count; times are in seconds, where the store has
// microseconds. What is of one device has the label drive or interface; the sums over devices are left to who
// asks. Every sample has the label id, the microVM's.
#pragma once

#include <string>
#include <string_view>

#include "base/metrics.h"

namespace mayfly::api {

inline constexpr const char* kPrometheusContentType = "text/plain; version=0.0.4; charset=utf-8";

// What the store does not hold.
struct PrometheusFacts {
  std::string instance_id;
  std::string monitor_version;
  std::string_view state;  // "Running"
};

// Reads the store and changes nothing in it: what its lines report since the last one stays the same.
std::string prometheus_text(Metrics& store, const PrometheusFacts& facts);

}  // namespace mayfly::api
