// How a device asks for the guest's attention.
#pragma once

namespace mayfly {

// One edge-triggered interrupt of the guest. Thread-safe, never blocks, never fails for a reason a device
// could act on.
class InterruptLine {
 public:
  virtual ~InterruptLine() = default;
  // One rising edge.
  virtual void trigger() = 0;
};

}  // namespace mayfly
