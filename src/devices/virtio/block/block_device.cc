#include "devices/virtio/block/block_device.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/text.h"
#include "devices/virtio/block/overlay.h"
#include "devices/virtio/block/sync_engine.h"
#include "devices/virtio/block/uring_engine.h"

namespace mayfly {
namespace {

// 5.2.6: types of requests, and the one flag of a segment.
constexpr std::uint32_t kTypeIn = 0;
constexpr std::uint32_t kTypeOut = 1;
constexpr std::uint32_t kTypeFlush = 4;
constexpr std::uint32_t kTypeGetId = 8;
constexpr std::uint32_t kTypeDiscard = 11;
constexpr std::uint32_t kTypeWriteZeroes = 13;
constexpr std::uint32_t kUnmap = 1;

constexpr std::uint64_t kSectorSize = DiskImage::kSectorSize;

// What a request has room for at first.
constexpr std::size_t kUsualBuffers = 16;

// Up to where the configuration space is read and written; the structure ends there without padding.
constexpr std::size_t kSpaceSize = 60;
static_assert(offsetof(BlockConfigurationSpace, unused1) + sizeof(BlockConfigurationSpace::unused1) ==
              kSpaceSize);

// How many zeroes an answer without data has to put before its status, so that the driver may look there.
// Beyond the limits filling would take too long, and such a driver has no claim: none then.
std::uint64_t bytes_to_fill(const DescriptorChain& chain) {
  const std::uint64_t bytes = total_size(chain.writable());
  return bytes > 1 && bytes - 1 <= BlockDevice::kMaxRequestBytes ? bytes - 1 : 0;
}

const char* to_string(IoOperation::Kind kind) {
  switch (kind) {
    case IoOperation::Kind::kRead:
      return "a read";
    case IoOperation::Kind::kWrite:
      return "a write";
    case IoOperation::Kind::kFlush:
      return "a flush";
    case IoOperation::Kind::kDiscard:
      return "a discard";
    case IoOperation::Kind::kZero:
    case IoOperation::Kind::kZeroAndFree:
      return "a write of zeroes";
  }
  return "an operation";
}

// Without a sector there is nothing to boot from. Any other drive may wait for its image to come by
// update_backing(), which the dialect's clients rely on, or else was named by mistake.
Result<void> check_size(const BlockDeviceConfig& config, const DiskImage& image) {
  if (image.sectors() > 0) {
    return {};
  }
  const std::string what = "drive " + config.id + ": " + image.path() + " has " +
                           (image.size() == 0 ? "no bytes" : "less than a sector of 512 bytes");
  if (config.is_root) {
    return fail(ErrorCode::kInvalidImage, what + ", and so no root file system");
  }
  LOG_WARN_LIMITED("%s: the guest sees an empty disk", what.c_str());
  return {};
}

}  // namespace

Result<BlockDevice::Parts> BlockDevice::open(const BlockDeviceConfig& config) {
  MAYFLY_TRY(config.validate());
  const std::string owner = "drive " + config.id;
  const bool only_read = config.read_only || config.overlay;
  MAYFLY_TRY_ASSIGN(DiskImage image,
                    DiskImage::open(owner, config.path,
                                    {.access = only_read ? ImageAccess::kRead : ImageAccess::kReadAndWrite,
                                     .lock = config.lock}));
  MAYFLY_TRY(check_size(config, image));
  std::vector<std::unique_ptr<IoEngine>> engines;
  if (config.overlay) {
    if (config.engine == BlockEngineType::kAsync) {
      LOG_WARN("%s: io_engine Async is for drives without an overlay: this one works synchronously",
               owner.c_str());
    }
    MAYFLY_TRY_ASSIGN(auto overlay, OverlayEngine::create(config, image));
    engines.push_back(std::move(overlay));
    return Parts{std::move(image), std::move(engines)};
  }
  if (config.engine == BlockEngineType::kAsync) {
    for (unsigned queue = 0; queue < config.queue_count; ++queue) {
      auto engine = UringEngine::create(image.fd(), kQueueSize);
      if (!engine) {
        LOG_WARN("%s: requests are done synchronously, because the host refuses io_uring: %s", owner.c_str(),
                 engine.error().message().c_str());
        engines.clear();
        break;
      }
      engines.push_back(std::move(*engine));
    }
  }
  if (engines.empty()) {
    engines.push_back(std::make_unique<SyncEngine>(image.fd()));
  }
  return Parts{std::move(image), std::move(engines)};
}

Result<std::unique_ptr<BlockDevice>> BlockDevice::create(const BlockDeviceConfig& config,
                                                         EventRegistrar& registrar) {
  MAYFLY_TRY_ASSIGN(Parts parts, open(config));
  return create(config, registrar, std::move(parts));
}

Result<std::unique_ptr<BlockDevice>> BlockDevice::create(const BlockDeviceConfig& config,
                                                         EventRegistrar& registrar, Parts parts) {
  MAYFLY_CHECK(parts.engines.size() == 1 || parts.engines.size() == config.queue_count,
               "a drive has one engine, or one for each queue");
  auto limiter = RateLimiter::create(config.rate_limiter, parts.clock.monotonic_ns());
  if (!limiter) {
    return tl::make_unexpected(limiter.error().within("drive " + config.id));
  }
  std::unique_ptr<BlockDevice> device(new BlockDevice(config, std::move(parts), *limiter));
  if (auto watched = device->watch(registrar); !watched) {
    return tl::make_unexpected(watched.error().within(device->name_));
  }
  return device;
}

BlockDevice::BlockDevice(const BlockDeviceConfig& config, Parts parts, const RateLimiter& limiter)
    : config_(config),
      name_("drive " + config.id),
      image_(std::move(parts.image)),
      engines_(std::move(parts.engines)),
      clock_(parts.clock),
      limiter_(limiter),
      metrics_(metrics().block_device(config.id)),
      queue_limits_(config.queue_count, kQueueSize),
      queues_(config.queue_count) {
  for (std::size_t index = 0; index < queues_.size(); ++index) {
    queues_[index].engine = engines_[index % engines_.size()].get();
  }

  offered_ = kFeatureSizeMax | kFeatureSegMax | kFeatureBlockSize | kFeatureTopology | kFeatureIndirectDesc |
             kFeatureEventIndex;
  space_.size_max = kSizeMax;
  space_.seg_max = kSegMax;
  space_.blk_size = kSectorSize;
  if (config_.read_only) {
    offered_ |= kFeatureReadOnly;
  } else {
    offered_ |= kFeatureWriteZeroes;
    space_.max_write_zeroes_sectors = kMaxWriteZeroesSectors;
    space_.max_write_zeroes_seg = kMaxWriteZeroesSegments;
    space_.write_zeroes_may_unmap = config_.discard ? 1 : 0;
    if (config_.discard) {
      offered_ |= kFeatureDiscard;
      space_.max_discard_sectors = kMaxDiscardSectors;
      space_.max_discard_seg = kMaxDiscardSegments;
    }
  }
  // 5.2.5.2: CONFIG_WCE comes with FLUSH only.
  if (config_.cache_type == BlockCacheType::kWriteback) {
    offered_ |= kFeatureFlush | kFeatureConfigWce;
  }
  if (config_.queue_count > 1) {
    offered_ |= kFeatureMultiQueue;
    space_.num_queues = static_cast<std::uint16_t>(config_.queue_count);
  }
  take_up_size();
  initialize_writeback();
}

BlockDevice::~BlockDevice() {
  const MutexLock lock(mutex());
  reset();
}

Result<void> BlockDevice::watch(EventRegistrar& registrar) {
  MAYFLY_TRY_ASSIGN(refill_, registrar.make_timer([this] { limiter_refilled(); }));
  for (Queue& queue : queues_) {
    if (const int fd = queue.engine->completion_fd(); fd >= 0) {
      MAYFLY_TRY_ASSIGN(queue.completions, registrar.watch(fd, Interest::kReadable,
                                                           [this](Readiness) { completions_arrived(); }));
    }
  }
  return {};
}

void BlockDevice::completions_arrived() {
  const MutexLock lock(mutex());
  process_queues();
}

void BlockDevice::limiter_refilled() {
  const MutexLock lock(mutex());
  metrics_.rate_limiter_event_count.add();
  held_back_ = false;
  process_queues();
}

// --- the configuration space ---

void BlockDevice::take_up_size() {
  if (image_.size() % kSectorSize != 0) {
    LOG_WARN("%s: the size of %s is not a multiple of 512 bytes: its last %llu bytes are left out",
             name_.c_str(), image_.path().c_str(),
             static_cast<unsigned long long>(image_.size() % kSectorSize));
  }
  space_.capacity = image_.sectors();
  // What the host would like to move at once, as the driver's physical block; never less than a page, which
  // is what the host's cache works in.
  const auto block = static_cast<std::uint32_t>(
      std::clamp<std::uint64_t>(std::bit_floor(image_.preferred_block()), 4096, 65536) / kSectorSize);
  space_.physical_block_exp = static_cast<std::uint8_t>(std::countr_zero(block));
  space_.min_io_size = static_cast<std::uint16_t>(block);
  if ((offered_ & kFeatureDiscard) != 0) {
    space_.discard_sector_alignment = block;
  }
}

void BlockDevice::initialize_writeback() {
  // 5.2.5.2: with CONFIG_WCE but without FLUSH the driver could not make anything stable itself.
  const bool cannot_flush = negotiated(kFeatureConfigWce) && !negotiated(kFeatureFlush);
  space_.writeback = (offered_ & kFeatureFlush) != 0 && !cannot_flush ? 1 : 0;
}

bool BlockDevice::writes_through() const {
  if ((offered_ & kFeatureFlush) == 0) {
    return false;
  }
  // 5.2.6.2: the first two cases in which a completed write is stable.
  return negotiated(kFeatureConfigWce) ? space_.writeback == 0 : !negotiated(kFeatureFlush);
}

void BlockDevice::read_configuration(std::uint64_t offset, std::span<std::uint8_t> data) {
  std::array<std::uint8_t, sizeof(BlockConfigurationSpace)> bytes;
  std::memcpy(bytes.data(), &space_, sizeof(space_));
  for (std::uint8_t& byte : data) {
    byte = offset < kSpaceSize ? bytes.at(offset) : std::uint8_t{0};
    offset = std::min<std::uint64_t>(offset, kSpaceSize) + 1;
  }
}

void BlockDevice::write_configuration(std::uint64_t offset, std::span<const std::uint8_t> data) {
  // `writeback` is the only field that a driver may write, and only so (5.2.6.1).
  if (offset == offsetof(BlockConfigurationSpace, writeback) && data.size() == 1 && data[0] <= 1 &&
      negotiated(kFeatureConfigWce)) {
    space_.writeback = data[0];
    return;
  }
  metrics_.cfg_fails.add();
  LOG_WARN_LIMITED("%s: the driver writes %zu bytes of the configuration space where it may not, at %llu",
                   name_.c_str(), data.size(), static_cast<unsigned long long>(offset));
}

void BlockDevice::features_accepted(std::uint64_t features) {
  accepted_ = features;
  initialize_writeback();
}

// --- life ---

void BlockDevice::activate(VirtioActivation activation) {
  if (accepted_ != activation.features) {
    features_accepted(activation.features);
  }
  for (std::size_t index = 0; index < queues_.size() && index < activation.queues.size(); ++index) {
    queues_[index].ring = std::move(activation.queues[index]);
  }
  active_ = true;
}

void BlockDevice::activation_failed() {
  metrics_.activate_fails.add();
}

void BlockDevice::reset() {
  active_ = false;
  for (Queue& queue : queues_) {
    queue.engine->cancel();  // nobody is answered any more
  }
  for (Queue& queue : queues_) {
    queue.engine->drain();
    reap(queue);
    forget_requests(queue);
    queue.ring.reset();
  }
  // The timer is the monitor thread's. It may fire for nothing.
  held_back_ = false;
  accepted_ = 0;
  initialize_writeback();
}

void BlockDevice::stop_queue(std::size_t index) {
  Queue& queue = queues_.at(index);
  if (!queue.ring) {
    return;
  }
  // What is under way is given back: the driver may count on it until the queue has stopped.
  settle(queue);
  publish();
  forget_requests(queue);
  queue.ring.reset();
}

// Waits until every request of a queue is answered.
void BlockDevice::settle(Queue& queue) {
  file_end_.reset();
  // Each turn ends one operation of every request at least; a request has few (its segments and a flush).
  while (queue.free.size() != queue.requests.size()) {
    queue.engine->drain();
    reap(queue);
  }
}

// Drops what was under way when the device ended the use of its queues: nobody is answered any more.
void BlockDevice::forget_requests(Queue& queue) {
  for (std::uint32_t token = 0; token < queue.requests.size(); ++token) {
    if (queue.requests[token].chain) {
      release(queue, token);
    }
  }
}

Result<void> BlockDevice::update_backing(const std::string& path) {
  const auto replace = [this, &path]() -> Result<void> {
    if (config_.overlay) {
      return fail(ErrorCode::kUnsupported,
                  name_ + ": an overlay lies on the image that it was made for, which cannot be changed");
    }
    if (image_.is_at(path)) {
      // This file, whose lock is ours already. (The same path may lead to another one by now.)
      return image_.refresh_size(name_);
    }
    MAYFLY_TRY_ASSIGN(
        DiskImage image,
        DiskImage::open(name_, path,
                        {.access = config_.read_only ? ImageAccess::kRead : ImageAccess::kReadAndWrite,
                         .lock = config_.lock}));
    MAYFLY_TRY(check_size(config_, image));
    for (Queue& queue : queues_) {
      settle(queue);
    }
    for (const auto& engine : engines_) {
      engine->set_file(image.fd());
    }
    image_ = std::move(image);
    return {};
  };
  if (auto done = replace(); !done) {
    metrics_.update_fails.add();
    return done;
  }
  metrics_.update_count.add();
  publish();
  take_up_size();
  transport().configuration_changed();
  return {};
}

Result<void> BlockDevice::update_rate_limiter(const RateLimiterConfig& changes) {
  if (auto updated = limiter_.update(changes, clock_.monotonic_ns()); !updated) {
    return tl::make_unexpected(updated.error().within(name_));
  }
  if (held_back_) {
    refill_->cancel();
    held_back_ = false;
    transport().process_later();
  }
  return {};
}

BlockDeviceState BlockDevice::state() {
  BlockDeviceState state{.features = accepted_,
                         .writeback = space_.writeback != 0,
                         .rate_limiter = limiter_.save(clock_.monotonic_ns()),
                         .queues = {}};
  // Also of a device that needs a reset: nothing may come into the guest's memory once it is saved.
  for (Queue& queue : queues_) {
    settle(queue);
  }
  publish();
  for (const Queue& queue : queues_) {
    // What a broken device had begun never comes back: there is no such state, and nobody asks for it.
    state.queues.push_back(active_ && queue.ring ? std::optional(queue.ring->state()) : std::nullopt);
  }
  return state;
}

Result<void> BlockDevice::restore(const BlockDeviceState& state) {
  const auto wrong = [this](const std::string& what) {
    return fail(ErrorCode::kInvalidArgument, name_ + ": restore: " + what);
  };
  if (const std::uint64_t missing = state.features & ~(offered_ | kFeatureVersion1); missing != 0) {
    return wrong("its driver uses features that it does not offer here: " + hex(missing));
  }
  if (state.queues.size() != queues_.size()) {
    return wrong("there are " + std::to_string(state.queues.size()) + " queues, and it has " +
                 std::to_string(queues_.size()));
  }
  auto limiter = RateLimiter::restore(state.rate_limiter, clock_.monotonic_ns());
  if (!limiter) {
    return tl::make_unexpected(limiter.error().within(name_ + ": restore"));
  }
  limiter_ = *limiter;
  features_accepted(state.features);
  space_.writeback = state.writeback ? 1 : 0;
  return {};
}

// --- queues ---

void BlockDevice::Allowance::look(std::uint64_t now_ns) {
  constexpr auto kLongest = static_cast<std::uint64_t>(std::chrono::nanoseconds(kTimePerRound).count());
  if (!ends_ns) {
    ends_ns = now_ns + kLongest;
  } else if (now_ns >= *ends_ns) {
    cost = 0;
  }
}

void BlockDevice::process() {
  metrics_.queue_event_count.add();
  process_queues();
}

void BlockDevice::process_queues() {
  Round round = Round::kDone;
  file_end_.reset();
  allowance_ = {};
  // The queues take turns in being first, so that none starves behind a busy one.
  first_queue_ = (first_queue_ + 1) % queues_.size();
  // What is over makes room under way for whichever queue is first.
  for (Queue& queue : queues_) {
    reap(queue);
  }
  for (std::size_t turn = 0; active_ && turn < queues_.size(); ++turn) {
    Queue& queue = queues_[(first_queue_ + turn) % queues_.size()];
    if (queue.ring && process_queue(queue) == Round::kLeftOver) {
      round = Round::kLeftOver;
    }
  }
  if (!active_) {
    return;
  }
  publish();
  if (round == Round::kLeftOver) {
    metrics_.remaining_reqs_count.add();
    transport().process_later();
  }
}

BlockDevice::Round BlockDevice::process_queue(Queue& queue) {
  VirtQueue& ring = *queue.ring;
  ring.spare_doorbell();
  std::uint32_t requests_left = ring.config().size;
  while (requests_left != 0 && !allowance_.is_spent() && !held_back_ && !has_enough_under_way()) {
    auto chain = ring.take();
    if (!chain) {
      give_up(chain.error());
      return Round::kDone;
    }
    if (*chain) {
      --requests_left;
      begin(queue, std::move(**chain));
      continue;
    }
    const bool all_handed_over = exchange(queue);
    const auto more = ring.want_doorbell();
    if (!more) {
      give_up(more.error());
      return Round::kDone;
    }
    if (!*more) {
      return all_handed_over ? Round::kDone : Round::kLeftOver;
    }
    ring.spare_doorbell();
  }
  // The driver need not ring: we come back anyway, be it when the limiter has been refilled, or when the
  // engine has something to tell.
  const bool all_handed_over = exchange(queue);
  return (held_back_ || has_enough_under_way()) && all_handed_over ? Round::kDone : Round::kLeftOver;
}

void BlockDevice::reap(Queue& queue) {
  while (const auto completion = queue.engine->reap()) {
    if (active_) {
      finish(queue, completion->token, completion->result);
    } else {
      release(queue, completion->token);
    }
  }
}

// Hands over what was begun and takes back what is over. False where the host did not take all.
bool BlockDevice::exchange(Queue& queue) {
  queue.engine->kick();
  reap(queue);
  return queue.engine->kick();  // of nothing, as a rule
}

// Shows the driver what was answered: one interrupt at most, for all queues.
void BlockDevice::publish() {
  bool wanted = false;
  for (Queue& queue : queues_) {
    wanted = (queue.ring && queue.ring->publish()) || wanted;
  }
  if (wanted) {
    transport().used_buffers();
  }
}

void BlockDevice::give_up(QueueFault fault) {
  // What was answered until here was answered well.
  publish();
  active_ = false;
  metrics_.event_fails.add();
  transport().needs_reset(mayfly::to_string(fault));
}

// --- requests ---

void BlockDevice::begin(Queue& queue, DescriptorChain chain) {
  const std::uint64_t now_ns = clock_.monotonic_ns();
  allowance_.look(now_ns);
  const std::uint32_t token = acquire(queue);
  Request& request = queue.requests[token];
  request.chain.emplace(std::move(chain));
  request.began_ns = now_ns;
  const Verdict verdict = prepare(request);
  if (verdict.status != Status::kOk) {
    request.bytes = bytes_to_fill(*request.chain);
    request.cost = std::max(kCommandCost, request.bytes);
  }
  if (!passes_limiter(request.bytes, now_ns)) {
    DescriptorChain held = std::move(*request.chain);
    release(queue, token);
    queue.ring->put_back(std::move(held));
    return;
  }
  allowance_.take(request.cost);
  if (verdict.status != Status::kOk) {
    metrics_.invalid_reqs_count.add();
    if (verdict.why != nullptr) {
      LOG_WARN_LIMITED("%s: a request is refused: %s", name_.c_str(), verdict.why);
    }
    respond(queue, token, verdict.status, false);
  } else if (request.asks_id) {
    write_id(*request.chain);
    respond(queue, token, Status::kOk, true);
  } else {
    advance(queue, token);
  }
}

bool BlockDevice::passes_limiter(std::uint64_t bytes, std::uint64_t now_ns) {
  if (!limiter_.limits() || limiter_.consume(bytes, now_ns)) {
    return true;
  }
  metrics_.rate_limiter_throttled_events.add();
  // One timer for all: the limiter is the drive's. A time beyond the clock is as good as the longest there
  // is.
  const std::uint64_t delay = std::min<std::uint64_t>(limiter_.ready_at(bytes, now_ns) - now_ns,
                                                      std::chrono::nanoseconds::max().count());
  if (auto started = refill_->start(std::chrono::nanoseconds(delay)); !started) {
    metrics_.event_fails.add();
    LOG_ERROR_LIMITED("%s: the rate limiter lets a request through, because it cannot wait: %s",
                      name_.c_str(), started.error().message().c_str());
    return true;
  }
  held_back_ = true;
  return false;
}

BlockDevice::Verdict BlockDevice::prepare(Request& request) {
  const DescriptorChain& chain = *request.chain;
  if (chain.writable().empty()) {
    // There is no byte that a status could go to. The queue itself is sound, and a reset would cost the
    // driver's other requests: the chain goes back with nothing written, which no answer looks like.
    return {Status::kIoError, "it has no byte for its status"};
  }
  ChainReader data = chain.reader();
  const auto header = data.read_object<Header>();
  if (!header) {
    return {Status::kIoError, "its header is too short"};
  }
  switch (header->type) {
    case kTypeIn:
    case kTypeOut:
      return prepare_transfer(request, *header, data);
    case kTypeFlush:
      request.operation.kind = IoOperation::Kind::kFlush;
      // Not offered and sent all the same: the drive was asked for without.
      request.begun = config_.cache_type == BlockCacheType::kUnsafe;
      request.cost = request.begun ? kCommandCost : kFlushCost;
      return {};
    case kTypeGetId:
      return prepare_id(request);
    case kTypeDiscard:
    case kTypeWriteZeroes:
      return prepare_segments(request, *header, data);
    default:
      return {Status::kUnsupported};
  }
}

BlockDevice::Verdict BlockDevice::prepare_transfer(Request& request, const Header& header, ChainReader data) {
  const bool is_read = header.type == kTypeIn;
  if (!is_read && config_.read_only) {
    return {Status::kIoError, "it writes to a read-only drive"};  // 5.2.6.2
  }
  ChainWriter writer = request.chain->writer();
  const std::uint64_t bytes = is_read ? writer.remaining() - 1 : data.remaining();
  if (bytes % kSectorSize != 0) {
    return {Status::kIoError, "its data are not whole sectors"};
  }
  if (bytes > kMaxRequestBytes) {
    return {Status::kIoError, "it has more data than the limits allow"};
  }
  if (!in_capacity(header.sector, bytes / kSectorSize)) {
    return {Status::kIoError, "it reaches past the drive's end"};
  }
  const bool taken = is_read ? writer.take(bytes, request.buffers) : data.take(bytes, request.buffers);
  MAYFLY_CHECK(taken, "a chain has fewer bytes than it has");
  const bool durable = !is_read && writes_through();
  request.bytes = bytes;
  request.cost = bytes + (durable ? kFlushCost : 0);
  request.begun = bytes == 0;
  request.operation = {.kind = is_read ? IoOperation::Kind::kRead : IoOperation::Kind::kWrite,
                       .durable = durable,
                       .offset = header.sector * kSectorSize,
                       .length = bytes,
                       .buffers = request.buffers};
  return {};
}

BlockDevice::Verdict BlockDevice::prepare_segments(Request& request, const Header& header, ChainReader data) {
  const bool is_discard = header.type == kTypeDiscard;
  if (config_.read_only) {
    return {Status::kIoError, "it writes to a read-only drive"};  // 5.2.6.2
  }
  if (!negotiated(is_discard ? kFeatureDiscard : kFeatureWriteZeroes)) {
    return {Status::kUnsupported};
  }
  const std::uint64_t bytes = data.remaining();
  const std::uint32_t most = is_discard ? kMaxDiscardSegments : kMaxWriteZeroesSegments;
  if (bytes == 0 || bytes % sizeof(Segment) != 0 || bytes / sizeof(Segment) > most) {
    return {Status::kIoError, "its segments are none, too many or not whole"};
  }
  request.segment_count = static_cast<std::uint32_t>(bytes / sizeof(Segment));
  const auto segments = std::span(request.segments).first(request.segment_count);
  data.read(std::as_writable_bytes(segments));
  // Of all segments before any is acted on: these answers are demanded (5.2.6.2).
  for (const Segment& segment : segments) {
    if ((segment.flags & ~kUnmap) != 0 || (is_discard && segment.flags != 0)) {
      return {Status::kUnsupported};
    }
  }
  for (Segment& segment : segments) {
    if (segment.sectors > (is_discard ? kMaxDiscardSectors : kMaxWriteZeroesSectors)) {
      return {Status::kIoError, "a segment is larger than the limits allow"};
    }
    if (!in_capacity(segment.sector, segment.sectors)) {
      return {Status::kIoError, "a segment reaches past the drive's end"};
    }
    // To keep its storage is a way to make zeroes of it, whatever the driver asks for.
    segment.flags = config_.discard ? segment.flags : 0;
    const std::uint64_t length = segment.sectors * kSectorSize;
    // What may have to be written out counts as that.
    request.bytes += is_discard ? 0 : length;
    request.cost += kCommandCost + (is_discard ? length / kDiscardedPerByte : length);
  }
  request.operation.kind = is_discard ? IoOperation::Kind::kDiscard : IoOperation::Kind::kZero;
  request.begun = true;
  // Zeroes are written data as any (5.2.6.2); what a discard leaves behind is nothing to rely on.
  request.then_flush = !is_discard && writes_through();
  request.cost += request.then_flush ? kFlushCost : 0;
  return {};
}

BlockDevice::Verdict BlockDevice::prepare_id(Request& request) {
  const std::uint64_t room = request.chain->writer().remaining() - 1;
  if (room < kIdSize) {
    return {Status::kIoError, "it has no room for the drive's id"};
  }
  if (room > kMaxRequestBytes) {
    return {Status::kIoError, "it has more data than the limits allow"};
  }
  request.asks_id = true;
  request.bytes = room;
  request.cost = std::max(kCommandCost, room);
  return {};
}

bool BlockDevice::in_capacity(std::uint64_t sector, std::uint64_t sectors) const {
  return sectors <= space_.capacity && sector <= space_.capacity - sectors;
}

void BlockDevice::write_id(const DescriptorChain& chain) const {
  ChainWriter writer = chain.writer();
  std::array<std::byte, kIdSize> id{};
  std::memcpy(id.data(), config_.id.data(), std::min(config_.id.size(), id.size()));
  writer.write(id);
  writer.write_zeroes(writer.remaining() - 1);
}

// What a request has done next: nothing where all is over.
const IoOperation* BlockDevice::next_operation(Request& request) {
  IoOperation& operation = request.operation;
  if (!request.begun) {
    request.begun = true;
    return &operation;
  }
  if (request.segments_begun < request.segment_count) {
    const Segment& segment = request.segments.at(request.segments_begun++);
    if (operation.kind != IoOperation::Kind::kDiscard) {
      operation.kind =
          (segment.flags & kUnmap) != 0 ? IoOperation::Kind::kZeroAndFree : IoOperation::Kind::kZero;
    }
    operation.offset = segment.sector * kSectorSize;
    operation.length = segment.sectors * kSectorSize;
    return &operation;
  }
  if (request.then_flush) {
    request.then_flush = false;
    operation.kind = IoOperation::Kind::kFlush;
    return &operation;
  }
  return nullptr;
}

// A write past the end of a file that was shrunk would make it grow again, with a hole of zeroes in which the
// guest finds nothing of what it had written there. Looked at once a round: it costs a system call. Who
// shrinks the file between that and the write gets what it did before.
bool BlockDevice::reaches_past_the_file(const IoOperation& operation) {
  if (operation.kind == IoOperation::Kind::kRead || operation.kind == IoOperation::Kind::kFlush ||
      config_.overlay) {
    return false;  // reads find out themselves, and overlays look at their own file
  }
  if (!file_end_) {
    file_end_ = image_.current_end();
  }
  return operation.offset + operation.length > *file_end_;
}

void BlockDevice::advance(Queue& queue, std::uint32_t token) {
  Request& request = queue.requests[token];
  while (const IoOperation* const operation = next_operation(request)) {
    const bool is_nothing = operation->kind != IoOperation::Kind::kFlush && operation->length == 0;
    std::optional<IoResult> result = IoResult{};
    if (reaches_past_the_file(*operation)) {
      result->os_errno = ENODATA;
    } else if (!is_nothing) {
      result = queue.engine->submit(token, *operation);
    }
    if (!result) {
      if (!std::exchange(request.under_way, true)) {
        under_way_ += request.cost;
      }
      return;
    }
    if (result->os_errno != 0) {
      finish(queue, token, *result);
      return;
    }
  }
  count(request);
  const bool filled = request.operation.kind == IoOperation::Kind::kRead;
  respond(queue, token, Status::kOk, filled);
}

void BlockDevice::finish(Queue& queue, std::uint32_t token, IoResult result) {
  if (result.os_errno == 0) {
    advance(queue, token);
    return;
  }
  Request& request = queue.requests[token];
  metrics_.execute_fails.add();
  const IoOperation& operation = request.operation;
  const char* const why =
      result.os_errno == ENODATA ? "the file ends before: it was shrunk" : ::strerrordesc_np(result.os_errno);
  LOG_WARN_LIMITED("%s: %s of %llu bytes at byte %llu of %s failed: %s", name_.c_str(),
                   to_string(operation.kind), static_cast<unsigned long long>(operation.length),
                   static_cast<unsigned long long>(operation.offset), image_.path().c_str(),
                   why != nullptr ? why : "unknown error");
  respond(queue, token, Status::kIoError, false);
}

void BlockDevice::count(const Request& request) {
  const std::uint64_t now_ns = clock_.monotonic_ns();
  allowance_.look(now_ns);
  const std::uint64_t duration_us = (now_ns - request.began_ns) / 1000;
  switch (request.operation.kind) {
    case IoOperation::Kind::kRead:
      metrics_.read_count.add();
      metrics_.read_bytes.add(request.bytes);
      metrics_.read_agg.record_us(duration_us);
      return;
    case IoOperation::Kind::kWrite:
      metrics_.write_count.add();
      metrics_.write_bytes.add(request.bytes);
      metrics_.write_agg.record_us(duration_us);
      return;
    case IoOperation::Kind::kFlush:
      if (request.segment_count == 0) {
        metrics_.flush_count.add();
      }
      return;
    default:
      return;
  }
}

void BlockDevice::respond(Queue& queue, std::uint32_t token, Status status, bool filled) {
  DescriptorChain chain = std::move(*queue.requests[token].chain);
  release(queue, token);
  answer(queue, std::move(chain), status, filled);
}

// Gives a chain back with its status in the last writable byte (5.2.6). `filled`: the bytes before that one
// were written, too. Otherwise they are now, as zeroes: a driver looks at no byte past the length that it is
// told (2.7.8.3), and must look at the status.
void BlockDevice::answer(Queue& queue, DescriptorChain chain, Status status, bool filled) {
  const auto writable = chain.writable();
  if (writable.empty()) {
    queue.ring->complete(std::move(chain), 0);
    return;
  }
  const std::uint64_t bytes = total_size(writable);
  if (const std::uint64_t fill = filled ? 0 : bytes_to_fill(chain); fill != 0) {
    chain.writer().write_zeroes(fill);
    filled = true;
  }
  const GuestSlice& last = writable.back();
  last.set_object(last.size() - 1, static_cast<std::uint8_t>(status));
  // Where nothing was filled: too few rather than too many (2.7.8.2).
  queue.ring->complete(std::move(chain), filled || bytes == 1 ? static_cast<std::uint32_t>(bytes) : 0);
}

std::uint32_t BlockDevice::acquire(Queue& queue) {
  if (queue.free.empty()) {
    // No more than the ring has descriptors: each holds a chain that was taken from it.
    queue.requests.emplace_back().buffers.reserve(kUsualBuffers);
    queue.free.reserve(queue.requests.capacity());
    return static_cast<std::uint32_t>(queue.requests.size() - 1);
  }
  const std::uint32_t token = queue.free.back();
  queue.free.pop_back();
  return token;
}

void BlockDevice::release(Queue& queue, std::uint32_t token) {
  Request& request = queue.requests[token];
  if (std::exchange(request.under_way, false)) {
    under_way_ -= request.cost;
  }
  request.chain.reset();
  request.operation = {};
  request.buffers.clear();
  request.segment_count = 0;
  request.segments_begun = 0;
  request.begun = false;
  request.then_flush = false;
  request.asks_id = false;
  request.bytes = 0;
  request.cost = 0;
  queue.free.push_back(token);
}

}  // namespace mayfly
