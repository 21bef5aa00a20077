#include "devices/virtio/block/uring_engine.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <string>

#include "base/check.h"
#include "devices/virtio/block/file_io.h"

namespace mayfly {
namespace {

// How often the kernel is asked again that has no memory for an operation right now.
constexpr int kAttempts = 16;

// What a completion carries that is no operation's.
constexpr std::uint64_t kCancellation = UINT64_MAX;

constexpr std::array kOperations = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ,
                                    IORING_OP_WRITE, IORING_OP_FSYNC,  IORING_OP_FALLOCATE};

// From now on the ring does what a drive needs, with the file that is registered, and nothing else: what a
// ring does passes no filter of system calls (Linux 5.10).
int confine(io_uring& ring) {
  std::array<io_uring_restriction, kOperations.size() + 4> restrictions{};
  auto next = restrictions.begin();
  for (const auto operation : kOperations) {
    next->opcode = IORING_RESTRICTION_SQE_OP;
    (next++)->sqe_op = operation;
  }
  next->opcode = IORING_RESTRICTION_SQE_OP;
  (next++)->sqe_op = IORING_OP_ASYNC_CANCEL;
  next->opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
  (next++)->sqe_flags = IOSQE_FIXED_FILE;
  next->opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
  (next++)->sqe_flags = IOSQE_FIXED_FILE | IOSQE_ASYNC;
  next->opcode = IORING_RESTRICTION_REGISTER_OP;
  (next++)->register_op = IORING_REGISTER_FILES_UPDATE;
  const int failed =
      io_uring_register_restrictions(&ring, restrictions.data(), static_cast<unsigned>(restrictions.size()));
  return failed < 0 ? failed : io_uring_enable_rings(&ring);
}

bool try_again(int os_errno) {
  return os_errno == EAGAIN || os_errno == EINTR;
}

}  // namespace

Result<std::unique_ptr<UringEngine>> UringEngine::create(int fd, unsigned depth) {
  std::unique_ptr<UringEngine> engine(new UringEngine(fd, depth));
  io_uring_params parameters{};
  parameters.flags = IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED;
  if (const int failed = io_uring_queue_init_params(depth, &engine->ring_, &parameters); failed < 0) {
    return fail_errno(-failed, "set up an io_uring");
  }
  engine->has_ring_ = true;
  if (parameters.sq_entries < depth) {
    return fail(ErrorCode::kUnsupported, "the host's io_uring is too small");
  }
  // Buffers' arrays are read when handed over; results are never dropped.
  constexpr unsigned kNeeded = IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_NODROP;
  if ((parameters.features & kNeeded) != kNeeded) {
    return fail(ErrorCode::kUnsupported, "the host's io_uring does not copy an operation when it takes it");
  }
  const std::unique_ptr<io_uring_probe, void (*)(io_uring_probe*)> probe(
      io_uring_get_probe_ring(&engine->ring_), io_uring_free_probe);
  for (const int operation : kOperations) {
    if (probe == nullptr || io_uring_opcode_supported(probe.get(), operation) == 0) {
      return fail(ErrorCode::kUnsupported,
                  "the host's io_uring lacks operation " + std::to_string(operation));
    }
  }
  if (const int failed = io_uring_register_files(&engine->ring_, &fd, 1); failed < 0) {
    return fail_errno(-failed, "register the image with an io_uring");
  }
  engine->registered_ = true;
  if (const int failed = confine(engine->ring_); failed < 0) {
    return fail_errno(-failed, "confine an io_uring to its drive");
  }
  engine->transfers_wait_ = file_io::cannot_try(fd);
  return engine;
}

UringEngine::UringEngine(int fd, unsigned depth) : fd_(fd), under_way_(depth) {
  over_.reserve(depth);
}

UringEngine::~UringEngine() {
  if (has_ring_) {
    drain();
    io_uring_queue_exit(&ring_);
  }
}

std::optional<IoResult> UringEngine::submit(std::uint32_t token, const IoOperation& operation) {
  under_way_.at(token) = operation;
  if (!registered_) {
    return file_io::perform(fd_, under_way_.at(token));
  }
  ++in_flight_;
  prepare(token);
  return std::nullopt;
}

// Puts what is still to do of an operation into the submission queue, which has an entry for each token.
void UringEngine::prepare(std::uint32_t token) {
  const IoOperation& operation = under_way_[token];
  io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
  MAYFLY_CHECK(sqe != nullptr, "more operations than tokens");
  constexpr int kFile = 0;  // among those that are registered
  const auto offset = operation.offset;
  const auto buffers = operation.buffers;
  switch (operation.kind) {
    case IoOperation::Kind::kRead:
      if (buffers.size() == 1) {
        io_uring_prep_read(sqe, kFile, buffers[0].iov_base, static_cast<unsigned>(buffers[0].iov_len),
                           offset);
      } else {
        io_uring_prep_readv(sqe, kFile, buffers.data(), static_cast<unsigned>(buffers.size()), offset);
      }
      break;
    case IoOperation::Kind::kWrite:
      if (buffers.size() == 1) {
        io_uring_prep_write(sqe, kFile, buffers[0].iov_base, static_cast<unsigned>(buffers[0].iov_len),
                            offset);
      } else {
        io_uring_prep_writev(sqe, kFile, buffers.data(), static_cast<unsigned>(buffers.size()), offset);
      }
      sqe->rw_flags = operation.durable ? RWF_DSYNC : 0;
      break;
    case IoOperation::Kind::kFlush:
      io_uring_prep_fsync(sqe, kFile, IORING_FSYNC_DATASYNC);
      break;
    case IoOperation::Kind::kDiscard:
    case IoOperation::Kind::kZeroAndFree:
      io_uring_prep_fallocate(sqe, kFile, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              static_cast<off_t>(offset), static_cast<off_t>(operation.length));
      break;
    case IoOperation::Kind::kZero:
      io_uring_prep_fallocate(sqe, kFile, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                              static_cast<off_t>(offset), static_cast<off_t>(operation.length));
      break;
  }
  sqe->flags |= IOSQE_FIXED_FILE;
  if (transfers_wait_ &&
      (operation.kind == IoOperation::Kind::kRead || operation.kind == IoOperation::Kind::kWrite)) {
    // The kernel would try whether it has to wait, be told that this file cannot say, and only then hand the
    // operation to a thread of its own.
    sqe->flags |= IOSQE_ASYNC;
  }
  sqe->user_data = token;
  ++not_handed_over_;
}

bool UringEngine::kick() {
  for (int attempt = 0; not_handed_over_ != 0 && attempt < kAttempts; ++attempt) {
    const int taken = io_uring_submit(&ring_);
    if (taken >= 0) {
      not_handed_over_ -= static_cast<std::uint32_t>(taken);
    } else {
      MAYFLY_CHECK(try_again(-taken) || taken == -EBUSY || taken == -ENOMEM,
                   "a ring of ours cannot be entered");
    }
  }
  return not_handed_over_ == 0;
}

std::optional<IoResult> UringEngine::conclude(std::uint32_t token, int outcome) {
  if (cancelled_) {
    return IoResult{ECANCELED};
  }
  IoOperation& operation = under_way_[token];
  const bool moves_data =
      operation.kind == IoOperation::Kind::kRead || operation.kind == IoOperation::Kind::kWrite;
  if (outcome < 0) {
    // Where another way is left it is a synchronous one: rare, and bounded by the limits of a request.
    // But not on a vCPU's thread, which may make none of its calls: there the driver stops the queue
    // meanwhile.
    const bool has_another_way = file_io::is_unsupported(-outcome) || try_again(-outcome);
    if (!has_another_way || std::this_thread::get_id() != maker_) {
      return IoResult{-outcome};
    }
    return file_io::perform(fd_, operation);
  }
  if (!moves_data) {
    return IoResult{};
  }
  if (outcome == 0) {
    return IoResult{ENODATA};
  }
  const auto moved = static_cast<std::size_t>(outcome);
  operation.buffers = file_io::advance(operation.buffers, moved);
  operation.offset += moved;
  if (operation.buffers.empty()) {
    return IoResult{};
  }
  prepare(token);
  return std::nullopt;
}

std::optional<IoCompletion> UringEngine::take_completion(io_uring_cqe* cqe) {
  const std::uint64_t name = cqe->user_data;
  const int outcome = cqe->res;
  io_uring_cqe_seen(&ring_, cqe);
  if (name == kCancellation) {
    return std::nullopt;
  }
  const auto token = static_cast<std::uint32_t>(name);
  const auto result = conclude(token, outcome);
  if (!result) {
    return std::nullopt;
  }
  --in_flight_;
  return IoCompletion{token, *result};
}

std::optional<IoCompletion> UringEngine::reap() {
  if (!over_.empty()) {
    const IoCompletion completion = over_.back();
    over_.pop_back();
    return completion;
  }
  for (;;) {
    io_uring_cqe* cqe = nullptr;
    // The queue of results is in memory that the kernel shares: this is no system call.
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      if (const auto completion = take_completion(cqe)) {
        return completion;
      }
    }
    // The rest of an operation that moved a part, or the next step of a request. Nobody may come by to hand
    // it over otherwise.
    if (not_handed_over_ == 0 || !kick()) {
      return std::nullopt;
    }
  }
}

void UringEngine::drain() {
  while (in_flight_ != 0) {
    io_uring_cqe* cqe = nullptr;
    if (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      if (const auto completion = take_completion(cqe)) {
        over_.push_back(*completion);
      }
      continue;
    }
    if (kick()) {
      io_uring_wait_cqe(&ring_, &cqe);  // or a signal came: we look again
    }
  }
  cancelled_ = false;
}

void UringEngine::cancel() {
  if (in_flight_ == 0) {
    return;
  }
  cancelled_ = true;
  // What waits for a thread of the kernel's never begins, and what can be interrupted is; what a disk works
  // on goes on. A kernel before 5.19 answers that it cannot: then all goes on.
  kick();
  if (io_uring_sqe* const sqe = io_uring_get_sqe(&ring_); sqe != nullptr) {
    io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY);
    sqe->flags |= IOSQE_FIXED_FILE;  // means nothing here, but the ring takes no entry without
    io_uring_sqe_set_data64(sqe, kCancellation);
    ++not_handed_over_;
    kick();
  }
}

void UringEngine::set_file(int fd) {
  // Where the ring cannot take the file up, operations are done synchronously.
  registered_ = registered_ && io_uring_register_files_update(&ring_, 0, &fd, 1) == 1;
  transfers_wait_ = file_io::cannot_try(fd);
  fd_ = fd;
}

}  // namespace mayfly
