// The virtio block device (virtio 1.2, section 5.2) over a disk image on the host.
//
// The guest controls everything in its queues and may ask for anything at any time. What a request may be:
//
//   IN, OUT        whole sectors (512 bytes) within the capacity, at most kMaxRequestBytes
//   FLUSH          nothing but header and status
//   GET_ID         20 bytes or more to put the drive's id in
//   DISCARD        1 to kMaxDiscardSegments segments within the capacity and the limits
//   WRITE_ZEROES   1 to kMaxWriteZeroesSegments of them
//
// Anything else is answered by UNSUPP (what the device cannot do) or IOERR (what it cannot do so), as is what
// the host fails at. Header, data and status may lie in any division over descriptors (2.7.4.1).
//
// The rate limiter sees every request, one that is refused or asks for the id as well: it is an operation, of
// the bytes that its answer has to fill.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/result.h"
#include "devices/virtio/block/block_config.h"
#include "devices/virtio/block/image_file.h"
#include "devices/virtio/block/io_engine.h"
#include "devices/virtio/queue/virt_queue.h"
#include "devices/virtio/transport/virtio_device.h"
#include "event/event_loop.h"
#include "rate_limiter/rate_limiter.h"

namespace mayfly {

// 5.2.4: struct virtio_blk_config, as far as the features offered go.
struct BlockConfigurationSpace {
  std::uint64_t capacity = 0;  // sectors
  std::uint32_t size_max = 0;
  std::uint32_t seg_max = 0;
  std::uint32_t geometry = 0;
  std::uint32_t blk_size = 0;
  std::uint8_t physical_block_exp = 0;
  std::uint8_t alignment_offset = 0;
  std::uint16_t min_io_size = 0;
  std::uint32_t opt_io_size = 0;
  std::uint8_t writeback = 0;
  std::uint8_t unused0 = 0;
  std::uint16_t num_queues = 0;
  std::uint32_t max_discard_sectors = 0;
  std::uint32_t max_discard_seg = 0;
  std::uint32_t discard_sector_alignment = 0;
  std::uint32_t max_write_zeroes_sectors = 0;
  std::uint32_t max_write_zeroes_seg = 0;
  std::uint8_t write_zeroes_may_unmap = 0;
  std::array<std::uint8_t, 3> unused1{};
};

// All that the device remembers besides its configuration, taken while nothing is under way.
struct BlockDeviceState {
  std::uint64_t features = 0;  // accepted by the driver
  bool writeback = false;      // as the driver has set it
  RateLimiterState rate_limiter;
  // One a queue, nothing for one that is not in use.
  std::vector<std::optional<VirtQueueState>> queues;
};

class BlockDevice final : public VirtioDevice {
 public:
  static constexpr std::uint32_t kDeviceId = 2;  // 5.2.1

  // Feature bits (5.2.3).
  static constexpr std::uint64_t kFeatureSizeMax = 1U << 1;
  static constexpr std::uint64_t kFeatureSegMax = 1U << 2;
  static constexpr std::uint64_t kFeatureReadOnly = 1U << 5;
  static constexpr std::uint64_t kFeatureBlockSize = 1U << 6;
  static constexpr std::uint64_t kFeatureFlush = 1U << 9;
  static constexpr std::uint64_t kFeatureTopology = 1U << 10;
  static constexpr std::uint64_t kFeatureConfigWce = 1U << 11;
  static constexpr std::uint64_t kFeatureMultiQueue = 1U << 12;
  static constexpr std::uint64_t kFeatureDiscard = 1U << 13;
  static constexpr std::uint64_t kFeatureWriteZeroes = 1U << 14;

  // Limits that the driver is told. A request is not interrupted once it is begun: they are small enough for
  // the monitor thread to come back soon, and large enough for 1 MiB of a sequential transfer of Linux's to
  // be one request (256 pages wherever they lie would be two; neighbours share a descriptor).
  static constexpr std::uint16_t kQueueSize = 256;
  static constexpr std::uint32_t kSegMax = kQueueSize - 2;  // a descriptor each for header and status
  static constexpr std::uint32_t kSizeMax = 16U << 10;      // bytes
  static constexpr std::uint32_t kMaxDiscardSegments = 16;
  static constexpr std::uint32_t kMaxDiscardSectors = 1U << 15;  // 16 MiB
  // Less: where the file system cannot do better, the zeroes are written out.
  static constexpr std::uint32_t kMaxWriteZeroesSegments = 4;
  static constexpr std::uint32_t kMaxWriteZeroesSectors = 1U << 11;  // 1 MiB
  // What follows from the first two: just under 4 MiB. More is refused.
  static constexpr std::uint64_t kMaxRequestBytes = std::uint64_t{kSegMax} * kSizeMax;

  // A round over all queues begins no further request once those that it began have cost so much, or taken so
  // long; the rest follows when others had their turn. Data cost their bytes, and all else what it may keep
  // the host busy for, as so many bytes of data would:
  static constexpr std::uint64_t kCostPerRound = 4U << 20;
  static constexpr std::chrono::milliseconds kTimePerRound{2};
  // a request that is refused or asks for the id, at least; and each segment
  static constexpr std::uint64_t kCommandCost = 32U << 10;
  // a flush, and a write that is to be durable, beside its bytes
  static constexpr std::uint64_t kFlushCost = 1U << 20;
  // a byte that is discarded, for this part of one
  static constexpr std::uint64_t kDiscardedPerByte = 64;
  // No further request is begun while those under way of a drive cost so much: the others stay in the rings,
  // and who must wait for what is under way (a reset on a vCPU's thread, with all that waits for the device's
  // lock) waits for no more. One request may go beyond it.
  static constexpr std::uint64_t kMaxUnderWay = 16U << 20;
  static constexpr std::size_t kIdSize = 20;

  // What a device works with. Tests bring their own.
  struct Parts {
    DiskImage image;
    std::vector<std::unique_ptr<IoEngine>> engines;  // one for each queue; or one for all, never under way
    const Clock& clock = kSystemClock;
  };

  // Opens and locks the image and the overlay; logs where it takes another engine than the one asked for.
  // Errors name the drive: those of BlockDeviceConfig::validate(), DiskImage, OverlayEngine; kInvalidImage
  // for a root device without a sector. Any other drive may be empty, with a warning.
  static Result<Parts> open(const BlockDeviceConfig& config);

  // Made and destroyed on the thread of `registrar`, which outlives it. Errors: those of open(), of the rate
  // limiter and of the event loop, naming the drive.
  static Result<std::unique_ptr<BlockDevice>> create(const BlockDeviceConfig& config,
                                                     EventRegistrar& registrar);
  static Result<std::unique_ptr<BlockDevice>> create(const BlockDeviceConfig& config,
                                                     EventRegistrar& registrar, Parts parts);
  BlockDevice(const BlockDevice&) = delete;
  BlockDevice& operator=(const BlockDevice&) = delete;
  ~BlockDevice() override;

  std::string_view name() const override { return name_; }
  std::uint32_t type() const override { return kDeviceId; }
  std::uint64_t features() const override { return offered_; }
  std::span<const std::uint16_t> queue_limits() const override { return queue_limits_; }
  void read_configuration(std::uint64_t offset, std::span<std::uint8_t> data) override;
  void write_configuration(std::uint64_t offset, std::span<const std::uint8_t> data) override;
  void features_accepted(std::uint64_t features) override;
  void activate(VirtioActivation activation) override;
  void activation_failed() override;
  void reset() override;
  void stop_queue(std::size_t index) override;
  void process() override;

  // The following are called under the device's lock, on the registrar's thread.

  // Puts another image in the place of this one, with the size it has; the driver is told. The same path
  // again takes up a size that has changed. After an error (as open(), or kUnsupported for a drive with an
  // overlay, which is of its image's size) nothing has changed.
  Result<void> update_backing(const std::string& path);
  // As the driver is told of it, in sectors.
  std::uint64_t capacity() const { return space_.capacity; }
  // As RateLimiter::update(); what was held back goes on by the new limits.
  Result<void> update_rate_limiter(const RateLimiterConfig& changes);

  // Waits for what is under way and gives it back to the driver first; then all that the device wrote to
  // guest memory is noted there. Of a device that needs a reset no queue is in use, and nothing is given
  // back.
  BlockDeviceState state();
  // For a device that was not activated yet; its queues come with activate(), by MmioTransport::restore().
  // Errors, after which nothing has changed: kInvalidArgument for features that it does not offer, another
  // number of queues, or a state of the rate limiter's that cannot be.
  Result<void> restore(const BlockDeviceState& state);

 private:
  struct Segment {  // 5.2.6: struct virtio_blk_discard_write_zeroes
    std::uint64_t sector;
    std::uint32_t sectors;
    std::uint32_t flags;
  };
  struct Header {  // 5.2.6: the start of struct virtio_blk_req
    std::uint32_t type;
    std::uint32_t reserved;
    std::uint64_t sector;
  };

  // A request on its way through the engine, as one operation after the other.
  struct Request {
    std::optional<DescriptorChain> chain;  // nothing: the token is free
    // IN, OUT and FLUSH: the one. DISCARD and WRITE_ZEROES: what the segment under way is.
    IoOperation operation;
    std::vector<iovec> buffers;
    std::array<Segment, kMaxDiscardSegments> segments{};
    std::uint32_t segment_count = 0;
    std::uint32_t segments_begun = 0;
    bool begun = false;       // the one operation
    bool then_flush = false;  // a flush is still to come
    bool asks_id = false;
    bool under_way = false;   // and counted in under_way_
    std::uint64_t bytes = 0;  // of data, or of an answer without any
    std::uint64_t cost = 0;   // see kCostPerRound
    std::uint64_t began_ns = 0;
  };
  struct Queue {
    std::optional<VirtQueue> ring;
    IoEngine* engine = nullptr;
    std::vector<Request> requests;    // by token; grows as far as the ring's size
    std::vector<std::uint32_t> free;  // tokens not in use: the one that was given back last is first again
    std::unique_ptr<Watch> completions;
  };
  enum class Status : std::uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2 };  // 5.2.6
  // What is to become of a request: it is done, or refused and why.
  struct Verdict {
    Status status = Status::kOk;
    const char* why = nullptr;  // for the log; nothing: it is not worth a line
  };
  // What a round may still do.
  struct Allowance {
    std::uint64_t cost = kCostPerRound;
    std::optional<std::uint64_t> ends_ns;  // counted from the first request

    void take(std::uint64_t what) { cost -= std::min(cost, what); }
    // The clock is read for each request anyway.
    void look(std::uint64_t now_ns);
    bool is_spent() const { return cost == 0; }
  };
  enum class Round : std::uint8_t { kDone, kLeftOver };

  BlockDevice(const BlockDeviceConfig& config, Parts parts, const RateLimiter& limiter);

  Result<void> watch(EventRegistrar& registrar);
  void completions_arrived();
  void limiter_refilled();
  void take_up_size();
  void initialize_writeback();
  bool writes_through() const;
  bool negotiated(std::uint64_t feature) const { return (accepted_ & feature) != 0; }

  void process_queues();
  Round process_queue(Queue& queue);
  bool exchange(Queue& queue);
  void reap(Queue& queue);
  void settle(Queue& queue);
  void forget_requests(Queue& queue);
  void publish();
  void give_up(QueueFault fault);

  // Takes a chain that holds a request: answers it, or begins it; or puts it into the queue again, where the
  // rate limiter holds it back.
  void begin(Queue& queue, DescriptorChain chain);
  bool passes_limiter(std::uint64_t bytes, std::uint64_t now_ns);
  // What a request is and costs. Nothing is counted, written or begun: it may have to wait.
  Verdict prepare(Request& request);
  Verdict prepare_transfer(Request& request, const Header& header, ChainReader data);
  Verdict prepare_segments(Request& request, const Header& header, ChainReader data);
  Verdict prepare_id(Request& request);
  bool in_capacity(std::uint64_t sector, std::uint64_t sectors) const;
  void write_id(const DescriptorChain& chain) const;

  static const IoOperation* next_operation(Request& request);
  // Whether an operation would change what lies past the image's end, which has moved.
  bool reaches_past_the_file(const IoOperation& operation);
  // Begins what comes next of a request until something is under way or all is over.
  void advance(Queue& queue, std::uint32_t token);
  void finish(Queue& queue, std::uint32_t token, IoResult result);
  void count(const Request& request);
  // Ends a request.
  void respond(Queue& queue, std::uint32_t token, Status status, bool filled);
  static void answer(Queue& queue, DescriptorChain chain, Status status, bool filled);
  std::uint32_t acquire(Queue& queue);
  void release(Queue& queue, std::uint32_t token);
  bool has_enough_under_way() const { return under_way_ >= kMaxUnderWay; }

  const BlockDeviceConfig config_;
  const std::string name_;
  DiskImage image_;
  std::vector<std::unique_ptr<IoEngine>> engines_;  // after image_: they use it to their end
  const Clock& clock_;
  RateLimiter limiter_;
  std::unique_ptr<EventRegistrar::Timer> refill_;
  bool held_back_ = false;  // until refill_ fires
  BlockMetrics& metrics_;
  std::uint64_t offered_ = 0;
  std::vector<std::uint16_t> queue_limits_;
  BlockConfigurationSpace space_;
  std::uint64_t accepted_ = 0;
  bool active_ = false;
  std::size_t first_queue_ = 0;            // which one begins the next round
  Allowance allowance_;                    // of the round that goes on
  std::uint64_t under_way_ = 0;            // what the requests that an engine works on cost
  std::optional<std::uint64_t> file_end_;  // the image's, in bytes; as one round has seen it
  std::vector<Queue> queues_;              // after engines_: their watches go first
};

}  // namespace mayfly
