// An interrupt line that is an eventfd: KVM's irqfd at the other end turns each signal into an edge.
#pragma once

#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/bus/interrupt_line.h"

namespace mayfly {

class EventLine final : public InterruptLine {
 public:
  static Result<EventLine> create();

  void trigger() override;

  const UniqueFd& event() const { return event_; }

 private:
  explicit EventLine(UniqueFd event) : event_(std::move(event)) {}

  UniqueFd event_;
};

}  // namespace mayfly
