#include "mayfly/version.h"

namespace mayfly {

std::string version_text() {
  return "mayfly " MAYFLY_VERSION " (Firecracker API dialect 1.17)";
}

}  // namespace mayfly
