// The engine that lets the kernel work on many operations at once: io_uring.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/result.h"
#include "devices/virtio/block/io_engine.h"

namespace mayfly {

// One ring, for one queue. The kernel copies what it needs of an operation when it is handed over, and writes
// nowhere but to the buffers; an operation that moved a part only is handed over again for the rest.
//
// The ring may be entered by any thread, one at a time: a reset on a vCPU's thread waits for what the monitor
// thread began. (So neither IORING_SETUP_SINGLE_ISSUER nor IORING_SETUP_DEFER_TASKRUN.)
class UringEngine final : public IoEngine {
 public:
  // For at most `depth` operations at once, with tokens below it; `fd` is borrowed. Errors: kUnsupported
  // where the kernel lacks what this needs, otherwise what it refuses a ring with.
  static Result<std::unique_ptr<UringEngine>> create(int fd, unsigned depth);
  UringEngine(const UringEngine&) = delete;
  UringEngine& operator=(const UringEngine&) = delete;
  ~UringEngine() override;

  std::optional<IoResult> submit(std::uint32_t token, const IoOperation& operation) override;
  bool kick() override;
  std::optional<IoCompletion> reap() override;
  void drain() override;
  void cancel() override;
  int completion_fd() const override { return ring_.ring_fd; }
  void set_file(int fd) override;

 private:
  UringEngine(int fd, unsigned depth);

  void prepare(std::uint32_t token);
  // The result of an operation of which the kernel says `outcome`, or nothing where it goes on.
  std::optional<IoResult> conclude(std::uint32_t token, int outcome);
  std::optional<IoCompletion> take_completion(io_uring_cqe* cqe);

  io_uring ring_{};
  bool has_ring_ = false;
  bool registered_ = false;      // the file is the ring's number 0, and its only one
  bool transfers_wait_ = false;  // file_io::cannot_try()
  int fd_;
  const std::thread::id maker_ = std::this_thread::get_id();
  std::vector<IoOperation> under_way_;  // by token: what is still to do
  std::uint32_t in_flight_ = 0;         // operations without a result
  std::uint32_t not_handed_over_ = 0;   // of these, those that the kernel does not know yet
  bool cancelled_ = false;              // until drain() is over: nothing is gone on with
  std::vector<IoCompletion> over_;      // results that drain() met, for reap()
};

}  // namespace mayfly
