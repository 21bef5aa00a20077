// The metrics store: counters that any thread may count in, written as lines of JSON.
//
//   metrics().vcpu.exit_io_in.add();
//   const ScopedLatency timed(metrics().vcpu.exit_io_in_agg);
//
// The fields are listed in base/metric_fields.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/metric_fields.h"
#include "base/mutex.h"
#include "base/result.h"

namespace mayfly {

// Counts events. A line of metrics gives what was added since the line before. Thread-safe; relaxed: a count
// orders nothing else.
class Counter {
 public:
  constexpr Counter() = default;
  void add(std::uint64_t count = 1) { value_.fetch_add(count, std::memory_order_relaxed); }
  // Everything since the start of the process.
  std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  friend class Metrics;
  // The difference to what was last reported. It counts as reported once commit() is called: a line that
  // could not be written loses no event. One thread at a time, kept by Metrics.
  std::uint64_t sample() {
    sampled_ = value();
    return sampled_ - reported_;
  }
  void commit() { reported_ = sampled_; }

  std::atomic<std::uint64_t> value_{0};
  std::uint64_t sampled_ = 0;
  std::uint64_t reported_ = 0;
};

// Holds a value. Every line of metrics gives it as it is. Thread-safe, relaxed.
class Gauge {
 public:
  constexpr Gauge() = default;
  void set(std::uint64_t value) { value_.store(value, std::memory_order_relaxed); }
  std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

// Collects durations in microseconds: the shortest and longest since the start of the process (0: none yet;
// one below a microsecond counts as 1 for the shortest), and their sum, which is reported like a counter.
// Thread-safe.
class Latency {
 public:
  constexpr Latency() = default;
  void record_us(std::uint64_t duration);
  std::uint64_t min_us() const { return min_.value(); }
  std::uint64_t max_us() const { return max_.value(); }
  const Counter& sum_us() const { return sum_; }

 private:
  friend class Metrics;
  void merge(const Latency& other);

  struct Extreme {
    std::atomic<std::uint64_t> stored{0};
    std::uint64_t value() const { return stored.load(std::memory_order_relaxed); }
  };
  Extreme min_;
  Extreme max_;
  Counter sum_;
};

// Records the time from its making to its end.
class ScopedLatency {
 public:
  explicit ScopedLatency(Latency& latency) : latency_(latency), start_ns_(monotonic_ns()) {}
  ~ScopedLatency() { latency_.record_us((monotonic_ns() - start_ns_) / 1000); }
  ScopedLatency(const ScopedLatency&) = delete;
  ScopedLatency& operator=(const ScopedLatency&) = delete;

 private:
  Latency& latency_;
  std::uint64_t start_ns_;
};

// Is shown every field of every group, in order. `help` is a sentence about the field, for people.
class MetricVisitor {
 public:
  virtual ~MetricVisitor() = default;
  // `device` is empty for a group that there is once; otherwise the group's name in a line is
  // "<group>_<device>".
  virtual void begin_group(std::string_view group, std::string_view device) = 0;
  virtual void field(const char* name, const char* help, Counter& counter) = 0;
  virtual void field(const char* name, const char* help, Gauge& gauge) = 0;
  virtual void field(const char* name, const char* help, Latency& latency) = 0;
  virtual void end_group() = 0;
};

// One struct a group, with a member a field and visit(), which shows the members to a visitor.
#define MAYFLY_METRIC_COUNTER(name, help) Counter name;
#define MAYFLY_METRIC_GAUGE(name, help) Gauge name;
#define MAYFLY_METRIC_LATENCY(name, help) Latency name;
#define MAYFLY_METRIC_STRUCT(Group, FIELDS)                                   \
  struct Group {                                                              \
    FIELDS(MAYFLY_METRIC_COUNTER, MAYFLY_METRIC_GAUGE, MAYFLY_METRIC_LATENCY) \
    void visit(MetricVisitor& visitor);                                       \
  };
MAYFLY_METRIC_GROUPS(MAYFLY_METRIC_STRUCT)
#undef MAYFLY_METRIC_STRUCT
#undef MAYFLY_METRIC_LATENCY
#undef MAYFLY_METRIC_GAUGE
#undef MAYFLY_METRIC_COUNTER

// Where lines of metrics go, and what they carry besides.
struct MetricsOutput {
  std::string path;                               // a file or a FIFO
  std::string instance_id;                        // given as "id" where it is not empty
  std::map<std::string, std::string> properties;  // given as "properties" where there are any
};

// All groups. The groups are counted in by any thread at any time; the functions are thread-safe.
class Metrics {
 public:
  constexpr explicit Metrics(const Clock& clock = kSystemClock) : clock_(clock) {}
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  ApiServerMetrics api_server;
  DeprecatedApiMetrics deprecated_api;
  GetApiRequestsMetrics get_api_requests;
  I8042Metrics i8042;
  UartMetrics uart;
  LatenciesMetrics latencies_us;
  LoggerMetrics logger;
  MmdsMetrics mmds;
  PatchApiRequestsMetrics patch_api_requests;
  PutApiRequestsMetrics put_api_requests;
  SeccompMetrics seccomp;
  VcpuMetrics vcpu;
  VmmMetrics vmm;
  SignalsMetrics signals;
  InterruptsMetrics interrupts;

  // The group of one device, made when it is first asked for; the same for the same id ever after. It lives
  // as long as the store: a device may keep the reference. The ids must be is_resource_id(). The groups
  // "block" and "net" of a line are the sums over them.
  BlockMetrics& block_device(std::string_view drive_id);
  NetMetrics& net_device(std::string_view iface_id);

  // Starts the output; writes nothing yet. A second time: kInvalidArgument, as the control API demands.
  Result<void> open(const MetricsOutput& output);

  // Writes one line: a JSON object with the time, then every group. Does nothing before open(). Never blocks:
  // a line of which the file or FIFO takes nothing is an error (kBusy), is counted as
  // logger.missed_metrics_count, and its counts are in the next one. Where it takes a part, the rest goes out
  // before the next line.
  Result<void> flush();

  // flush() for a signal handler: allocates nothing, waits for nothing. Does nothing where another flush is
  // under way.
  void flush_from_signal() noexcept;

  // Shows everything to `visitor`, sums first brought up to date.
  void visit(MetricVisitor& visitor);

 private:
  template <typename Group>
  struct Device {
    std::string id;
    Group group;
    Device* next = nullptr;
  };
  struct Output;
  class JsonWriter;
  class Commit;
  class Collector;

  template <typename Group>
  Group& device(std::atomic<Device<Group>*>& list, std::string_view id);
  template <typename Group>
  static void sum_up(const std::atomic<Device<Group>*>& list, Group& sum);
  void visit_all(MetricVisitor& visitor);
  void make_room() MAYFLY_REQUIRES(mutex_);
  bool write_line(Output& output);

  const Clock& clock_;
  // Held by a flush or a visit, and while something is added. A leaf: no other lock is taken under it.
  Mutex mutex_;
  // True while samples or the line's storage are in use: what a signal handler looks at.
  std::atomic<bool> sampling_{false};
  // Append-only lists without locks for their readers, so that a signal handler can walk them.
  std::atomic<Device<BlockMetrics>*> block_devices_{nullptr};
  std::atomic<Device<NetMetrics>*> net_devices_{nullptr};
  BlockMetrics block_;
  NetMetrics net_;
  std::atomic<Output*> output_{nullptr};
};

// The process's own. Usable before main() and until the very end: it is never destroyed.
Metrics& metrics();

}  // namespace mayfly
