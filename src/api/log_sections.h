// Where log and metrics go, as a caller says it: plain data.
#pragma once

#include <map>
#include <optional>
#include <string>

namespace mayfly::api {

// The logger section (also the body of PUT /logger).
struct LoggerSection {
  std::optional<std::string> log_path;
  std::optional<std::string> level;
  std::optional<bool> show_level;
  std::optional<bool> show_log_origin;
  std::optional<std::string> module;
};

// The metrics section (also the body of PUT /metrics).
struct MetricsSection {
  std::string metrics_path;
  bool emit_id = false;
  std::map<std::string, std::string> properties;
};

}  // namespace mayfly::api
