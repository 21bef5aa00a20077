#include "vmm/event_line.h"

#include <unistd.h>

#include <cstdint>

#include "base/check.h"

namespace mayfly {

Result<EventLine> EventLine::create() {
  MAYFLY_TRY_ASSIGN(UniqueFd event, make_eventfd());
  return EventLine(std::move(event));
}

void EventLine::trigger() {
  // An eventfd's write fails only where its counter is full, which takes 2^64 - 2 signals that nobody
  // consumed.
  const std::uint64_t one = 1;
  const ssize_t written = ::write(event_.get(), &one, sizeof(one));
  MAYFLY_CHECK(written == sizeof(one), "an interrupt's eventfd refuses a signal");
}

}  // namespace mayfly
