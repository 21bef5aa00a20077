// Drives a virtio device of ours, in this process and on one thread, as fast as it goes: the device's side of
// a guest's I/O without KVM, without exits and without an event loop. bench/devices.py calls it.
//
//   device_load block FILE Sync|Async DEPTH LIMIT   random reads of 4 KiB
//   device_load net tx|rx LIMIT                     frames of 64 bytes, to or from memory
//   device_load tap NAME WAY LIMIT                  frames of 64 bytes into a tap
//
// WAY is `device`; or what there is without one, `write` for a writev() a frame and `uring` for an io_uring
// of 64 frames at a time. LIMIT is a number of operations, or with an s a number of seconds. What comes out
// is a line of JSON: the operations (frames), the seconds that they took, the CPU time in the program and in
// the kernel, the batches (how often the driver showed new requests to the device), the interrupts, and the
// waits for a descriptor.
#include <liburing.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "bench.h"
#include "devices/virtio/block/block_device.h"
#include "devices/virtio/net/net_device.h"
#include "devices/virtio/net/tap_backend.h"
#include "devices/virtio/transport/mmio_transport.h"
#include "lean_ring.h"
#include "support/mmio_window.h"
#include "support/virtio_driver/mmio_driver.h"

namespace mayfly::bench {
namespace {

using testing::BusWindow;
using testing::CountedLine;
using testing::Descriptor;
using testing::MmioDriver;
using testing::RingLayout;

// An event loop's watches without its loop: the load decides when to look. Timers never end.
class Watches final : public EventRegistrar {
 public:
  Result<std::unique_ptr<Watch>> watch(int fd, Interest interest,
                                       std::function<void(Readiness)> callback) override {
    entries_.push_back(
        {.fd = fd, .wanted = interest != Interest::kWritable, .callback = std::move(callback)});
    return std::make_unique<Entry::Handle>(*this, entries_.size() - 1);
  }
  Result<std::unique_ptr<Timer>> make_timer(std::function<void()> /*callback*/) override {
    return std::make_unique<NoTimer>();
  }

  // Calls the watch on `fd`, where it is enabled; without a system call.
  bool report(int fd) {
    for (Entry& entry : entries_) {
      if (entry.fd == fd && entry.wanted) {
        entry.callback({.readable = true});
        return true;
      }
    }
    return false;
  }
  // Waits for one of the descriptors that are waited for, one system call, and calls who watches those that
  // are ready. How many that was.
  std::size_t wait(int timeout_ms) {
    polled_.clear();
    for (const Entry& entry : entries_) {
      polled_.push_back({.fd = entry.wanted ? entry.fd : -1, .events = POLLIN, .revents = 0});
    }
    std::size_t called = 0;
    if (::poll(polled_.data(), polled_.size(), timeout_ms) > 0) {
      for (std::size_t index = 0; index < polled_.size(); ++index) {
        if (polled_[index].revents != 0) {
          entries_[index].callback({.readable = true});
          ++called;
        }
      }
    }
    return called;
  }

 private:
  struct Entry {
    class Handle final : public Watch {
     public:
      Handle(Watches& watches, std::size_t index) : watches_(watches), index_(index) {}
      Handle(const Handle&) = delete;
      Handle& operator=(const Handle&) = delete;
      ~Handle() override { watches_.entries_[index_].wanted = false; }
      Result<void> update(Interest interest, bool enabled) override {
        watches_.entries_[index_].wanted = enabled && interest != Interest::kWritable;
        return {};
      }

     private:
      Watches& watches_;
      std::size_t index_;
    };

    int fd;
    bool wanted;
    std::function<void(Readiness)> callback;
  };
  struct NoTimer final : Timer {
    Result<void> start(std::chrono::nanoseconds /*delay*/) override { return {}; }
    void cancel() override {}
  };

  std::vector<Entry> entries_;
  std::vector<pollfd> polled_;
};

// How long a load goes on, and what it came to.
class Run {
 public:
  explicit Run(std::string_view limit) {
    char* end = nullptr;
    const std::string text(limit);
    const double number = std::strtod(text.c_str(), &end);
    const bool is_time = std::string_view(end) == "s";
    if (number <= 0 || (!is_time && *end != '\0')) {
      give_up("LIMIT is a number of operations, or of seconds with an s");
    }
    (is_time ? nanoseconds_ : operations_) = static_cast<std::uint64_t>(is_time ? number * 1e9 : number);
  }

  void begin() {
    used_ = cpu_us();
    began_ = monotonic_ns();
  }
  // Looks at the clock: once a batch.
  bool goes_on() {
    took_ = monotonic_ns() - began_;
    return took_ < nanoseconds_ && operations < operations_;
  }
  void report(int interrupts) const {
    const auto now = cpu_us();
    std::printf(
        "{\"operations\": %llu, \"seconds\": %.6f, \"user_seconds\": %.6f, \"system_seconds\": %.6f, "
        "\"batches\": %llu, \"waits\": %llu, \"interrupts\": %d}\n",
        static_cast<unsigned long long>(operations), static_cast<double>(took_) / 1e9,
        static_cast<double>(now[0] - used_[0]) / 1e6, static_cast<double>(now[1] - used_[1]) / 1e6,
        static_cast<unsigned long long>(batches), static_cast<unsigned long long>(waits), interrupts);
  }

  std::uint64_t operations = 0;
  std::uint64_t batches = 0;
  std::uint64_t waits = 0;

 private:
  // In the program and in the kernel, of all threads, those of an io_uring included.
  static std::array<std::int64_t, 2> cpu_us() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto us = [](const timeval& time) { return std::int64_t{time.tv_sec} * 1'000'000 + time.tv_usec; };
    return {us(usage.ru_utime), us(usage.ru_stime)};
  }

  std::uint64_t nanoseconds_ = UINT64_MAX;
  std::uint64_t operations_ = UINT64_MAX;
  std::uint64_t began_ = 0;
  std::uint64_t took_ = 0;
  std::array<std::int64_t, 2> used_{};
};

// A machine around one device: RAM, the register window, the driver as far as DRIVER_OK.
class Machine {
 public:
  static constexpr std::uint64_t kRam = 64U << 20;
  static constexpr std::uint64_t kBuffers = 1U << 20;  // where the load's own begin
  static constexpr std::uint16_t kQueueSize = 256;

  Machine() : memory_(must(make_memory())), ram_(memory_) {}

  Watches& watches() { return watches_; }
  const GuestRam& ram() const { return ram_; }
  int interrupts() const { return line_.count(); }

  // The rings of the device's first `count` queues.
  std::vector<LeanRing> start(std::unique_ptr<VirtioDevice> device, std::uint16_t count) {
    device_ = std::move(device);
    transport_ = must(MmioTransport::create(*device_, memory_, line_, watches_));
    BusWindow window(*transport_);
    MmioDriver driver(window);
    if (!driver.negotiate(~std::uint64_t{0})) {
      give_up("the device refuses its own features");
    }
    std::vector<LeanRing> rings;
    for (std::uint16_t queue = 0; queue < count; ++queue) {
      const auto layout = RingLayout::at(0x10000 + 0x10000ULL * queue, kQueueSize);
      if (!driver.set_up_queue(queue, layout)) {
        give_up("a queue cannot be set up");
      }
      rings.emplace_back(ram_, layout);
    }
    driver.driver_ok();
    watches_.wait(0);
    return rings;
  }

  // As the doorbell does.
  void process() {
    const MutexLock lock(device_->mutex());
    device_->process();
  }
  // Until the device has something to do.
  void wait(Run& run) {
    ++run.waits;
    if (watches_.wait(10'000) == 0) {
      give_up("the device does not answer");
    }
  }

 private:
  static Result<GuestMemory> make_memory() {
    const std::array ranges = {*GuestRange::make(GuestAddress(0), kRam)};
    return GuestMemory::create(ranges, Backing::kAnonymous);
  }

  Watches watches_;
  GuestMemory memory_;
  GuestRam ram_;
  CountedLine line_;
  std::unique_ptr<VirtioDevice> device_;
  std::unique_ptr<MmioTransport> transport_;
};

class Random {  // xorshift64*
 public:
  std::uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1d) >> 16;
  }

 private:
  std::uint64_t state_ = 0x9e3779b97f4a7c15;
};

constexpr std::uint32_t kBlock = 4096;

// A request as Linux lays it out: header, data and status in an indirect table.
class BlockLoad {
 public:
  // The image's blocks of 4 KiB begin with their numbers, as 8 bytes, so that what was read can be told.
  BlockLoad(const std::string& file, BlockEngineType engine, std::uint16_t depth) {
    BlockDeviceConfig config;
    config.id = "bench";
    config.path = file;
    config.read_only = true;
    config.engine = engine;
    auto device = must(BlockDevice::create(config, machine_.watches()));
    std::array<std::uint8_t, sizeof(std::uint64_t)> capacity{};  // the first field: 5.2.4
    device->read_configuration(0, capacity);
    blocks_ = std::bit_cast<std::uint64_t>(capacity) * 512 / kBlock;
    if (blocks_ == 0) {
      give_up("the image has no block");
    }
    ring_.emplace(machine_.start(std::move(device), 1).front());
    for (std::uint16_t slot = 0; slot < depth; ++slot) {
      lay_out(slot);
    }
  }

  void go(Run& run) {
    run.begin();
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      request(static_cast<std::uint16_t>(slot));
    }
    std::uint64_t done = slots_.size();
    while (run.goes_on()) {
      run.batches += done != 0 ? 1 : 0;
      if (ring_->expose()) {
        machine_.process();
      }
      done = 0;
      while (const auto used = ring_->collect()) {
        check(*used);
        request(static_cast<std::uint16_t>(used->head));
        ++done;
      }
      run.operations += done;
      if (done == 0) {
        machine_.wait(run);
      }
    }
    run.report(machine_.interrupts());
  }

 private:
  struct Slot {
    std::uint64_t block = 0;
    std::uint64_t header = 0;  // guest addresses
    std::uint64_t data = 0;
    std::uint64_t status = 0;
  };
  static constexpr std::uint8_t kUnanswered = 0xff;

  void lay_out(std::uint16_t number) {
    const std::uint64_t small = Machine::kBuffers + 128ULL * number;
    const Slot slot{.block = 0,
                    .header = small + 64,
                    .data = Machine::kBuffers + 0x100000 + std::uint64_t{kBlock} * number,
                    .status = small + 80};
    auto& table = machine_.ram().at<std::array<Descriptor, 3>>(small);
    table = {{{slot.header, 16, testing::VIRTQ_DESC_F_NEXT, 1},
              {slot.data, kBlock, testing::VIRTQ_DESC_F_NEXT | testing::VIRTQ_DESC_F_WRITE, 2},
              {slot.status, 1, testing::VIRTQ_DESC_F_WRITE, 0}}};
    ring_->set_chain(number, {small, sizeof(table), testing::VIRTQ_DESC_F_INDIRECT, 0});
    slots_.push_back(slot);
  }

  void request(std::uint16_t number) {
    Slot& slot = slots_[number];
    slot.block = random_.next() % blocks_;
    machine_.ram().at<std::array<std::uint64_t, 2>>(slot.header) = {
        0, slot.block * (kBlock / 512)};  // type 0: IN
    machine_.ram().at<std::uint8_t>(slot.status) = kUnanswered;
    ring_->offer(number);
  }

  void check(const LeanRing::Used& used) const {
    if (used.head >= slots_.size()) {
      give_up("a chain came back that was not given");
    }
    const Slot& slot = slots_[used.head];
    if (used.length != kBlock + 1 || machine_.ram().at<std::uint8_t>(slot.status) != 0 ||
        machine_.ram().at<std::uint64_t>(slot.data) != slot.block) {
      give_up("a read of block " + std::to_string(slot.block) + " came back wrong");
    }
  }

  Machine machine_;
  std::optional<LeanRing> ring_;
  std::vector<Slot> slots_;
  std::uint64_t blocks_ = 0;
  Random random_;
};

constexpr std::size_t kFrame = 64;

// The other end of the cable: takes every frame, and has as many as it was told to.
class MemoryPort final : public NetPort {
 public:
  MemoryPort() : fd_(must(make_eventfd())) {}

  int fd() const override { return fd_.get(); }

  Status send(const NetHeader& /*header*/, ChainReader frame) override {
    const std::size_t bytes = std::min<std::size_t>(frame.remaining(), sent_.size());
    frame.read(std::span(sent_).first(bytes));
    ++sent;
    return Status::kDone;
  }
  Received receive(NetHeader& header, ChainWriter frame, std::span<std::byte> /*rest*/) override {
    if (to_come == 0) {
      return {Status::kWouldBlock, 0};
    }
    --to_come;
    header = {};
    std::memcpy(frame_.data(), &received, sizeof(received));
    ++received;
    frame.write(frame_);
    return {Status::kDone, frame_.size()};
  }

  // The number that the last frame sent begins with.
  std::uint64_t last_sent() const {
    std::uint64_t number = 0;
    std::memcpy(&number, sent_.data(), sizeof(number));
    return number;
  }

  std::uint64_t sent = 0;
  std::uint64_t received = 0;
  std::uint64_t to_come = 0;

 private:
  UniqueFd fd_;
  std::array<std::byte, 2048> sent_{};
  std::array<std::byte, kFrame> frame_{};
};

class MemoryBackend final : public NetBackend {
 public:
  std::size_t pairs() const override { return 1; }
  MemoryPort& port(std::size_t /*pair*/) override { return port_; }
  NetOffloads offloads() const override { return {.checksum = true, .tso4 = true, .tso6 = true}; }
  Result<void> set_offloads(const NetOffloads& /*offloads*/) override { return {}; }
  Result<void> use_pairs(std::size_t /*pairs*/) override { return {}; }

 private:
  MemoryPort port_;
};

// Frames as Linux lays them out: sent as header and frame in an indirect table, received into buffers of 1.5
// KiB that a large frame would take several of.
class NetLoad {
 public:
  static constexpr std::uint32_t kRxBuffer = 1536;
  // What comes or goes before the device is called: a batch.
  static constexpr std::uint16_t kBatch = 64;

  explicit NetLoad(std::string_view direction) : sends_(direction == "tx") {
    auto backend = std::make_unique<MemoryBackend>();
    port_ = &backend->port(0);
    start(std::move(backend));
  }
  // Sends into a tap.
  explicit NetLoad(std::unique_ptr<TapBackend> tap) : sends_(true) { start(std::move(tap)); }

  void go(Run& run) {
    run.begin();
    while (run.goes_on()) {
      if (sends_) {
        run.operations += send();
      } else {
        port_->to_come = kBatch;
        machine_.watches().report(port_->fd());
        run.operations += take_received();
      }
      ++run.batches;
    }
    run.report(machine_.interrupts());
  }

 private:
  static constexpr std::uint64_t rx_buffer(std::uint64_t slot) { return Machine::kBuffers + 2048 * slot; }
  static constexpr std::uint64_t tx_table(std::uint64_t slot) {
    return Machine::kBuffers + 0x200000 + 64 * slot;
  }
  static constexpr std::uint64_t tx_frame(std::uint64_t slot) {
    return Machine::kBuffers + 0x300000 + 2048 * slot;
  }

  void start(std::unique_ptr<NetBackend> backend) {
    auto rings =
        machine_.start(must(NetDevice::create({.id = "bench"}, std::move(backend), machine_.watches())), 2);
    rx_.emplace(rings[0]);
    tx_.emplace(rings[1]);
    for (std::uint16_t slot = 0; slot < Machine::kQueueSize; ++slot) {
      rx_->set_chain(slot, {rx_buffer(slot), kRxBuffer, testing::VIRTQ_DESC_F_WRITE, 0});
      rx_->offer(slot);
    }
    for (std::uint16_t slot = 0; slot < kBatch; ++slot) {
      auto& table = machine_.ram().at<std::array<Descriptor, 2>>(tx_table(slot));
      table = {{{tx_table(slot) + 32, sizeof(NetHeader), testing::VIRTQ_DESC_F_NEXT, 1},
                {tx_frame(slot), kFrame, 0, 0}}};
      tx_->set_chain(slot, {tx_table(slot), sizeof(table), testing::VIRTQ_DESC_F_INDIRECT, 0});
    }
    rx_->expose();
    machine_.process();
  }

  std::uint64_t take_received() {
    std::uint64_t frames = 0;
    while (const auto used = rx_->collect()) {
      const std::uint64_t buffer = rx_buffer(used->head);
      // The frames' numbers lie behind the header, at an address that is no multiple of 8.
      std::uint64_t number = 0;
      std::memcpy(&number, &machine_.ram().at<std::byte>(buffer + sizeof(NetHeader)), sizeof(number));
      if (used->length != sizeof(NetHeader) + kFrame || number != expected_) {
        give_up("a frame came wrong");
      }
      ++expected_;
      ++frames;
      rx_->offer(static_cast<std::uint16_t>(used->head));
    }
    if (rx_->expose()) {
      machine_.process();
    }
    if (frames == 0) {
      give_up("no frame comes");
    }
    return frames;
  }

  std::uint64_t send() {
    for (std::uint16_t slot = 0; slot < kBatch; ++slot) {
      machine_.ram().at<NetHeader>(tx_table(slot) + 32) = {};
      machine_.ram().at<std::uint64_t>(tx_frame(slot)) = next_sent_++;
      tx_->offer(slot);
    }
    if (tx_->expose()) {
      machine_.process();
    }
    std::uint64_t frames = 0;
    while (tx_->collect()) {
      ++frames;
    }
    const bool arrived =
        port_ == nullptr || (port_->sent == next_sent_ && port_->last_sent() == next_sent_ - 1);
    if (frames != kBatch || !arrived) {
      give_up("a frame was not sent");
    }
    return frames;
  }

  Machine machine_;
  bool sends_;
  MemoryPort* port_ = nullptr;  // of a back end in memory
  std::optional<LeanRing> rx_;
  std::optional<LeanRing> tx_;
  std::uint64_t expected_ = 0;
  std::uint64_t next_sent_ = 0;
};

// What the kernel takes for frames into a tap, without a device: the floor under it.
class TapFloor {
 public:
  explicit TapFloor(TapBackend& tap) : fd_(tap.port(0).fd()) {
    for (std::size_t index = 0; index < NetLoad::kBatch; ++index) {
      pieces_.push_back({frame_.data(), frame_.size()});
    }
  }

  void write(Run& run) {
    run.begin();
    while (run.goes_on()) {
      for (const iovec& piece : pieces_) {
        if (::writev(fd_, &piece, 1) < 0) {
          give_up("a frame was not sent");
        }
      }
      count(run);
    }
    run.report(0);
  }

  void uring(Run& run) {
    io_uring ring{};
    if (io_uring_queue_init(NetLoad::kBatch, &ring, 0) < 0 || io_uring_register_files(&ring, &fd_, 1) < 0) {
      give_up("the host refuses io_uring");
    }
    run.begin();
    while (run.goes_on()) {
      for (const iovec& piece : pieces_) {
        io_uring_sqe* const sqe = io_uring_get_sqe(&ring);
        if (sqe == nullptr) {
          give_up("an io_uring is full that should be empty");
        }
        io_uring_prep_writev(sqe, 0, &piece, 1, 0);
        sqe->flags |= IOSQE_FIXED_FILE;
      }
      io_uring_submit_and_wait(&ring, NetLoad::kBatch);
      unsigned head = 0;
      unsigned done = 0;
      io_uring_cqe* cqe = nullptr;
      io_uring_for_each_cqe(&ring, head, cqe) {
        done += cqe->res > 0 ? 1 : 0;
      }
      io_uring_cq_advance(&ring, done);
      if (done != NetLoad::kBatch) {
        give_up("a frame was not sent");
      }
      count(run);
    }
    run.report(0);
    io_uring_queue_exit(&ring);
  }

 private:
  static void count(Run& run) {
    run.operations += NetLoad::kBatch;
    ++run.batches;
  }

  int fd_;
  std::array<std::byte, sizeof(NetHeader) + kFrame> frame_{};
  std::vector<iovec> pieces_;
};

void load_tap(const std::string& name, std::string_view way, Run& run) {
  auto tap = must(TapBackend::open(name, 1));
  if (way == "device") {
    NetLoad(std::move(tap)).go(run);
  } else if (way == "write") {
    TapFloor(*tap).write(run);
  } else {
    TapFloor(*tap).uring(run);
  }
}

int run(std::span<const std::string_view> words) {
  if (words.size() == 5 && words[0] == "block" && (words[2] == "Sync" || words[2] == "Async")) {
    const int depth = std::atoi(std::string(words[3]).c_str());
    if (depth < 1 || depth > Machine::kQueueSize) {
      give_up("DEPTH is 1 to 256");
    }
    Run limits(words[4]);
    BlockLoad(std::string(words[1]), words[2] == "Sync" ? BlockEngineType::kSync : BlockEngineType::kAsync,
              static_cast<std::uint16_t>(depth))
        .go(limits);
    return 0;
  }
  if (words.size() == 3 && words[0] == "net" && (words[1] == "tx" || words[1] == "rx")) {
    Run limits(words[2]);
    NetLoad(words[1]).go(limits);
    return 0;
  }
  if (words.size() == 4 && words[0] == "tap" &&
      (words[2] == "device" || words[2] == "write" || words[2] == "uring")) {
    Run limits(words[3]);
    load_tap(std::string(words[1]), words[2], limits);
    return 0;
  }
  give_up("block FILE Sync|Async DEPTH LIMIT, net tx|rx LIMIT, or tap NAME device|write|uring LIMIT");
}

}  // namespace
}  // namespace mayfly::bench

int main(int count, char** words) {
  const std::vector<std::string_view> all(words + 1, words + count);
  return mayfly::bench::run(all);
}
