#include "vmm/dirty_log.h"

#include <algorithm>
#include <functional>

namespace mayfly {

Result<void> DirtyLog::start() {
  if (on_) {
    return {};
  }
  memory_.note_writes(true);
  if (auto started = vm_.set_dirty_logging(true); !started) {
    stop();
    return started;
  }
  on_ = true;
  return {};
}

void DirtyLog::stop() {
  on_ = false;
  memory_.note_writes(false);
  // A log that KVM would not end costs the guest faults, and nothing else.
  static_cast<void>(vm_.set_dirty_logging(false));
}

Result<std::vector<std::uint64_t>> DirtyLog::take_dirty_pages(std::size_t region) {
  if (!on_) {
    return fail(ErrorCode::kNotFound, "take dirty pages: writes to guest memory are not logged");
  }
  MAYFLY_TRY_ASSIGN(std::vector<std::uint64_t> pages, vm_.take_dirty_pages(region));
  MAYFLY_TRY_ASSIGN(const std::vector<std::uint64_t> noted, memory_.take_noted(region));
  if (noted.size() != pages.size()) {
    return fail(ErrorCode::kInternal, "take dirty pages: the VM has other memory");
  }
  std::transform(pages.begin(), pages.end(), noted.begin(), pages.begin(), std::bit_or<>());
  return pages;
}

}  // namespace mayfly
