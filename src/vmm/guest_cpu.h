// What a vCPU thread drives: KVM's vCPU in a machine, a fake in the thread's own tests.
#pragma once

#include <optional>

#include "vmm/outcome.h"

namespace mayfly {

class GuestCpu {
 public:
  virtual ~GuestCpu() = default;

  // Enters the guest once and handles what it came out for. Nothing: go on. On the vCPU's thread only.
  virtual std::optional<Outcome> run_once() noexcept = 0;

  // Finishes what the last exit left half done (a port read whose value the guest has not yet seen), without
  // running a guest instruction, so that the registers are whole. On the vCPU's thread only, with exits asked
  // for. Nothing: done; an outcome where that ended the guest.
  virtual std::optional<Outcome> settle() noexcept = 0;

  // While `wanted`, run_once() returns without entering the guest. From any thread. Does not by itself
  // interrupt a guest that is running: that takes a signal to the thread, too.
  virtual void want_exit(bool wanted) noexcept = 0;
};

}  // namespace mayfly
