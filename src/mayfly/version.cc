#include "mayfly/version.h"

namespace mayfly {

std::string monitor_version() {
  return MAYFLY_VERSION;
}

std::string version_text() {
  return "mayfly " MAYFLY_VERSION " (Firecracker API dialect 1.17)";
}

}  // namespace mayfly
