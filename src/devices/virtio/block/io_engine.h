// How a block device has its image read and written: one small interface, several engines behind it.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <span>

namespace mayfly {

// One thing to do to an image. Offsets and lengths are in bytes and lie within the image as it was when it
// was opened.
struct IoOperation {
  enum class Kind : std::uint8_t {
    kRead,
    kWrite,
    kFlush,        // what was written and completed before is on stable storage when it is over
    kDiscard,      // may give the range's storage back; what it reads as then is the engine's choice
    kZero,         // the range reads as zeroes and keeps its storage
    kZeroAndFree,  // the range reads as zeroes and may give its storage back
  };

  Kind kind = Kind::kRead;
  bool durable = false;  // kWrite: on stable storage when it is over
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  // kRead and kWrite: `length` bytes of guest RAM. The engine may change the array, which stays where it is
  // until the operation is over.
  std::span<iovec> buffers;
};

// How an operation ended: 0, or the host's errno. ENODATA: the image ends before the range does (it was
// shrunk since).
struct IoResult {
  int os_errno = 0;
};

struct IoCompletion {
  std::uint32_t token = 0;
  IoResult result;
};

// Used by one thread at a time (under its device's lock), but by whichever thread.
class IoEngine {
 public:
  IoEngine(const IoEngine&) = delete;
  IoEngine& operator=(const IoEngine&) = delete;
  virtual ~IoEngine() = default;

  // Starts an operation, or does it: the result where it is over on return; nothing where it is under way,
  // then its completion carries `token`. What was started is handed to the kernel by kick() at the latest.
  virtual std::optional<IoResult> submit(std::uint32_t token, const IoOperation& operation) = 0;

  // Hands over what was submitted, all at once. False where the host did not take all of it now: to be called
  // again.
  virtual bool kick() = 0;

  // The next operation that is over, or nothing: then the kernel was offered all that is still to be done,
  // also what was submitted since the last kick(). Never waits.
  virtual std::optional<IoCompletion> reap() = 0;

  // Waits until no operation is under way any more, and so none accesses guest RAM; what is over then can be
  // reaped.
  virtual void drain() = 0;

  // Ends what is under way early, as far as that is possible: done, undone or done in part, whatever its
  // result says. drain() is to follow.
  virtual void cancel() {}

  // Becomes readable when there is something to reap; -1 for an engine that is never under way.
  virtual int completion_fd() const = 0;

  // From now on the image is `fd` (borrowed). Nothing may be under way.
  virtual void set_file(int fd) = 0;

 protected:
  IoEngine() = default;
};

}  // namespace mayfly
