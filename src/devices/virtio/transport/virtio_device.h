// What a virtio device is to its transport, and a transport to its device (virtio 1.2, chapter 2).
//
// One lock a device, VirtioDevice::mutex(), guards the device, its queues and its transport's state. vCPU
// threads take it for an access to a register, the monitor thread to process the queues. Whoever calls a
// member function below holds it, and a device's own callbacks (of its back end, of a timer) take it first.
// It is held for no longer than a batch of requests takes, and a reset until no request is under way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "devices/virtio/queue/virt_queue.h"

namespace mayfly {

// Feature bits that are not a device type's own (chapter 6).
inline constexpr std::uint64_t kFeatureIndirectDesc = std::uint64_t{1} << 28;
inline constexpr std::uint64_t kFeatureEventIndex = std::uint64_t{1} << 29;
inline constexpr std::uint64_t kFeatureVersion1 = std::uint64_t{1} << 32;
inline constexpr std::uint64_t kFeatureInOrder = std::uint64_t{1} << 35;

// What a device may ask of the transport before it. All calls under the device's lock.
class VirtioTransport {
 public:
  // Buffers were used in a queue whose publish() said that the driver wants to know: an interrupt.
  virtual void used_buffers() noexcept = 0;
  // The configuration space has changed: a new generation of it, and an interrupt where the driver is ready.
  virtual void configuration_changed() noexcept = 0;
  // DEVICE_NEEDS_RESET (2.1.2), and an interrupt; logged with `why`. The device touches none of its queues
  // until it was reset.
  virtual void needs_reset(std::string_view why) noexcept = 0;
  // Has process() called again, on the monitor thread, after others had their turn.
  virtual void process_later() noexcept = 0;

 protected:
  ~VirtioTransport() = default;
};

// What the driver has settled when it sets DRIVER_OK.
struct VirtioActivation {
  std::uint64_t features = 0;  // accepted; a subset of those offered
  // One for each of the device's queues, nothing for one that the driver did not make ready.
  std::vector<std::optional<VirtQueue>> queues;
};

class VirtioDevice {
 public:
  VirtioDevice(const VirtioDevice&) = delete;
  VirtioDevice& operator=(const VirtioDevice&) = delete;
  virtual ~VirtioDevice() = default;

  // See above. No other lock of the project but those of a log, of the metrics and of who watches for errors
  // is taken under it.
  Mutex& mutex() { return mutex_; }

  // By its transport, which takes itself away at its end; from a reset until then the device does not use it.
  // One at a time.
  void attach(VirtioTransport& transport) { transport_ = &transport; }
  void detach() { transport_ = nullptr; }

  // `watcher` is told of the first error after which the device works no more before a reset, or never again.
  // Called on any thread, under the lock; must not throw. Before the driver sees the device.
  void watch_errors(std::function<void(std::string_view why)> watcher) {
    const MutexLock lock(mutex_);
    error_watcher_ = std::move(watcher);
  }
  // Under the lock. A driver can bring about one such error after another: those that follow are not told.
  void report_error(std::string_view why) noexcept {
    if (const auto watcher = std::exchange(error_watcher_, {})) {
      watcher(why);
    }
  }

  // Constant over the life of the device, and so without the lock.
  virtual std::string_view name() const = 0;   // for messages: "drive rootfs"
  virtual std::uint32_t type() const = 0;      // the device ID of chapter 5
  virtual std::uint64_t features() const = 0;  // offered; the transport adds VERSION_1
  // The largest size of each queue, a power of two; as many as there are queues.
  virtual std::span<const std::uint16_t> queue_limits() const = 0;

  // The device-specific configuration space (2.5). `offset` and the size of `data` are the driver's choice.
  // What lies past the end of the structure reads as 0 and is not written.
  virtual void read_configuration(std::uint64_t offset, std::span<std::uint8_t> data) = 0;
  virtual void write_configuration(std::uint64_t offset, std::span<const std::uint8_t> data) = 0;

  // FEATURES_OK: what the driver accepted, a subset of what is offered. Before activate(), and on a reset
  // void. For a device whose configuration space depends on it.
  virtual void features_accepted(std::uint64_t /*features*/) {}
  // DRIVER_OK: the device is live. On a vCPU's thread; process() follows on the monitor thread.
  virtual void activate(VirtioActivation activation) = 0;
  // DRIVER_OK with queues that cannot be: counts it. The device stays as it was.
  virtual void activation_failed() = 0;
  // Back to what the device was before activate(). On any thread, at any time, also twice. When it comes
  // back, nothing of the device accesses guest memory any more: requests under way are over.
  virtual void reset() = 0;
  // The driver stops using one queue (a 0 in QueueReady): as reset(), for this queue. `index` is one of the
  // device's. Also once the device needs a reset or its activation failed: then it has no such queue.
  virtual void stop_queue(std::size_t index) = 0;
  // The doorbell rang, for any of the queues or for none; also before activate(). On the monitor thread.
  // Bounded by the sizes of the queues: what is left over is for process_later().
  virtual void process() = 0;

 protected:
  VirtioDevice() = default;

  VirtioTransport& transport() const { return *transport_; }

 private:
  Mutex mutex_;
  VirtioTransport* transport_ = nullptr;
  std::function<void(std::string_view)> error_watcher_;  // guarded by the lock
};

}  // namespace mayfly
