#include "base/metrics.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "base/check.h"
#include "base/line_sink.h"
#include "base/text.h"

namespace mayfly {
namespace {

// Room for the text of a line: its fixed groups, and each device's. A test holds that they suffice with every
// number at its longest.
constexpr std::size_t kFixedGroupsSize = 24 * 1024;
constexpr std::size_t kDeviceGroupSize = 2 * 1024;

// Keeps `flag` set while it lives, if nobody else does.
class Claim {
 public:
  explicit Claim(std::atomic<bool>& flag)
      : flag_(flag), held_(!flag.exchange(true, std::memory_order_acquire)) {}
  ~Claim() {
    if (held_) {
      flag_.store(false, std::memory_order_release);
    }
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  bool held() const { return held_; }

 private:
  std::atomic<bool>& flag_;
  bool held_;
};

}  // namespace

#define MAYFLY_METRIC_VISIT(name, help) visitor.field(#name, help, name);
#define MAYFLY_METRIC_VISIT_GROUP(Group, FIELDS)                          \
  void Group::visit(MetricVisitor& visitor) {                             \
    FIELDS(MAYFLY_METRIC_VISIT, MAYFLY_METRIC_VISIT, MAYFLY_METRIC_VISIT) \
  }
MAYFLY_METRIC_GROUPS(MAYFLY_METRIC_VISIT_GROUP)
#undef MAYFLY_METRIC_VISIT_GROUP
#undef MAYFLY_METRIC_VISIT

void Latency::record_us(std::uint64_t duration) {
  const std::uint64_t shortest = std::max<std::uint64_t>(duration, 1);
  std::uint64_t seen = min_.value();
  while ((seen == 0 || shortest < seen) &&
         !min_.stored.compare_exchange_weak(seen, shortest, std::memory_order_relaxed)) {
  }
  seen = max_.value();
  while (duration > seen && !max_.stored.compare_exchange_weak(seen, duration, std::memory_order_relaxed)) {
  }
  sum_.add(duration);
}

void Latency::merge(const Latency& other) {
  const std::uint64_t shortest = other.min_us();
  if (shortest != 0 && (min_us() == 0 || shortest < min_us())) {
    min_.stored.store(shortest, std::memory_order_relaxed);
  }
  max_.stored.store(std::max(max_us(), other.max_us()), std::memory_order_relaxed);
  sum_.add(other.sum_.value());
}

struct Metrics::Output {
  UniqueFd fd;
  std::string head;        // the members after the time: "id" and "properties", each with a comma before it
  std::vector<char> line;  // grown by flush() only, so that a signal handler finds room
  // What of `line` a FIFO did not take: it goes out before the next line.
  std::size_t rest_start = 0;
  std::size_t rest_end = 0;
};

// Writes groups as members of a JSON object.
class Metrics::JsonWriter final : public MetricVisitor {
 public:
  explicit JsonWriter(TextBuffer& text) : text_(text) {}

  void begin_group(std::string_view group, std::string_view device) override {
    text_.append(",\"");
    text_.append(group);
    if (!device.empty()) {
      text_.append('_');
      text_.append(device);
    }
    text_.append("\":{");
    first_ = true;
  }
  void field(const char* name, const char*, Counter& counter) override { number(name, counter.sample()); }
  void field(const char* name, const char*, Gauge& gauge) override { number(name, gauge.value()); }
  void field(const char* name, const char*, Latency& latency) override {
    key(name);
    text_.append('{');
    first_ = true;
    number("min_us", latency.min_us());
    number("max_us", latency.max_us());
    number("sum_us", latency.sum_.sample());
    text_.append('}');
  }
  void end_group() override { text_.append('}'); }

 private:
  void key(const char* name) {
    text_.append(first_ ? "\"" : ",\"");
    first_ = false;
    text_.append(name);
    text_.append("\":");
  }
  void number(const char* name, std::uint64_t value) {
    key(name);
    text_.append_decimal(value);
  }

  TextBuffer& text_;
  bool first_ = true;
};

// Takes note that what was sampled is written.
class Metrics::Commit final : public MetricVisitor {
 public:
  void begin_group(std::string_view, std::string_view) override {}
  void field(const char*, const char*, Counter& counter) override { counter.commit(); }
  void field(const char*, const char*, Gauge&) override {}
  void field(const char*, const char*, Latency& latency) override { latency.sum_.commit(); }
  void end_group() override {}
};

// Adds groups of one kind up, field by field; on the stack only.
class Metrics::Collector final : public MetricVisitor {
 public:
  void begin_group(std::string_view, std::string_view) override {}
  void field(const char*, const char*, Counter& counter) override {
    slot(counters_, counter_count_) = &counter;
  }
  void field(const char*, const char*, Gauge&) override {
    MAYFLY_CHECK(false, "a gauge has no sum over devices");
  }
  void field(const char*, const char*, Latency& latency) override {
    slot(latencies_, latency_count_) = &latency;
  }
  void end_group() override {}

  void set_to_zero() {
    for (std::size_t i = 0; i < counter_count_; ++i) {
      counters_[i]->value_.store(0, std::memory_order_relaxed);
    }
    for (std::size_t i = 0; i < latency_count_; ++i) {
      latencies_[i]->min_.stored.store(0, std::memory_order_relaxed);
      latencies_[i]->max_.stored.store(0, std::memory_order_relaxed);
      latencies_[i]->sum_.value_.store(0, std::memory_order_relaxed);
    }
  }
  void add(const Collector& other) {
    for (std::size_t i = 0; i < counter_count_; ++i) {
      counters_[i]->add(other.counters_[i]->value());
    }
    for (std::size_t i = 0; i < latency_count_; ++i) {
      latencies_[i]->merge(*other.latencies_[i]);
    }
  }

 private:
  template <typename T, std::size_t Size>
  static T*& slot(std::array<T*, Size>& slots, std::size_t& count) {
    MAYFLY_CHECK(count < Size, "more fields in a device's group than the sum has room for");
    return slots[count++];
  }

  std::array<Counter*, 32> counters_{};
  std::array<Latency*, 4> latencies_{};
  std::size_t counter_count_ = 0;
  std::size_t latency_count_ = 0;
};

Metrics::~Metrics() {
  const auto destroy = [](auto* device) {
    while (device != nullptr) {
      const auto* const gone = device;
      device = device->next;
      delete gone;
    }
  };
  destroy(block_devices_.load());
  destroy(net_devices_.load());
  delete output_.load();
}

template <typename Group>
Group& Metrics::device(std::atomic<Device<Group>*>& list, std::string_view id) {
  MAYFLY_CHECK(is_resource_id(id), "the id of a device with metrics was not checked");
  const MutexLock lock(mutex_);
  Device<Group>* const first = list.load(std::memory_order_acquire);
  for (Device<Group>* found = first; found != nullptr; found = found->next) {
    if (found->id == id) {
      return found->group;
    }
  }
  auto* const made = new Device<Group>{.id = std::string(id), .group = {}, .next = first};
  list.store(made, std::memory_order_release);
  make_room();
  return made->group;
}

BlockMetrics& Metrics::block_device(std::string_view drive_id) {
  return device(block_devices_, drive_id);
}

NetMetrics& Metrics::net_device(std::string_view iface_id) {
  return device(net_devices_, iface_id);
}

template <typename Group>
void Metrics::sum_up(const std::atomic<Device<Group>*>& list, Group& sum) {
  Collector total;
  sum.visit(total);
  total.set_to_zero();
  for (Device<Group>* found = list.load(std::memory_order_acquire); found != nullptr; found = found->next) {
    Collector fields;
    found->group.visit(fields);
    total.add(fields);
  }
}

void Metrics::visit_all(MetricVisitor& visitor) {
  const auto show = [&visitor](std::string_view name, std::string_view device_id, auto& group) {
    visitor.begin_group(name, device_id);
    group.visit(visitor);
    visitor.end_group();
  };
  const auto show_devices = [&show](std::string_view name, const auto& list) {
    for (auto* found = list.load(std::memory_order_acquire); found != nullptr; found = found->next) {
      show(name, found->id, found->group);
    }
  };
  show("api_server", {}, api_server);
  show("block", {}, block_);
  show_devices("block", block_devices_);
  show("deprecated_api", {}, deprecated_api);
  show("get_api_requests", {}, get_api_requests);
  show("i8042", {}, i8042);
  show("latencies_us", {}, latencies_us);
  show("logger", {}, logger);
  show("mmds", {}, mmds);
  show("net", {}, net_);
  show_devices("net", net_devices_);
  show("patch_api_requests", {}, patch_api_requests);
  show("put_api_requests", {}, put_api_requests);
  show("seccomp", {}, seccomp);
  show("vcpu", {}, vcpu);
  show("vmm", {}, vmm);
  show("uart", {}, uart);
  show("signals", {}, signals);
  show("interrupts", {}, interrupts);
}

void Metrics::visit(MetricVisitor& visitor) {
  const MutexLock lock(mutex_);
  const Claim claim(sampling_);
  if (claim.held()) {
    sum_up(block_devices_, block_);
    sum_up(net_devices_, net_);
    visit_all(visitor);
  }
}

// Gives the line the room that it may need with all devices that there are.
void Metrics::make_room() {
  Output* const output = output_.load(std::memory_order_acquire);
  const Claim claim(sampling_);
  if (output == nullptr || !claim.held()) {
    return;
  }
  std::size_t size = kFixedGroupsSize + output->head.size();
  const auto count = [&size](const auto& list) {
    for (auto* found = list.load(std::memory_order_acquire); found != nullptr; found = found->next) {
      size += kDeviceGroupSize;
    }
  };
  count(block_devices_);
  count(net_devices_);
  output->line.resize(size);
}

Result<void> Metrics::open(const MetricsOutput& config) {
  const MutexLock lock(mutex_);
  if (output_.load() != nullptr) {
    return fail(ErrorCode::kInvalidArgument, "metrics: the output is set already");
  }
  auto output = std::make_unique<Output>();
  MAYFLY_TRY_ASSIGN(output->fd, open_line_file(config.path, "metrics file"));
  // An escape is at most six times as long as what it stands for.
  std::size_t size = 64 + 6 * config.instance_id.size();
  for (const auto& [key, value] : config.properties) {
    size += 16 + 6 * (key.size() + value.size());
  }
  std::vector<char> storage(size);
  TextBuffer head(storage);
  if (!config.instance_id.empty()) {
    head.append(",\"id\":");
    head.append_json_string(config.instance_id);
  }
  if (!config.properties.empty()) {
    head.append(",\"properties\":");
    char separator = '{';
    for (const auto& [key, value] : config.properties) {
      head.append(separator);
      head.append_json_string(key);
      head.append(':');
      head.append_json_string(value);
      separator = ',';
    }
    head.append('}');
  }
  output->head = head.view();
  output_.store(output.release(), std::memory_order_release);
  make_room();
  return {};
}

// With sampling_ claimed. Async-signal-safe.
bool Metrics::write_line(Output& output) {
  const std::string_view storage(output.line.data(), output.line.size());
  if (output.rest_start < output.rest_end) {
    output.rest_start +=
        write_once(output.fd.get(), storage.substr(output.rest_start, output.rest_end - output.rest_start));
    if (output.rest_start < output.rest_end) {
      logger.missed_metrics_count.add();
      return false;
    }
  }
  sum_up(block_devices_, block_);
  sum_up(net_devices_, net_);
  TextBuffer text(output.line);
  text.append("{\"utc_timestamp_ms\":");
  text.append_decimal(clock_.realtime_ns() / 1'000'000);
  text.append(output.head);
  JsonWriter json(text);
  visit_all(json);
  text.append("}\n");
  if (text.truncated()) {
    logger.metrics_fails.add();
    return false;
  }
  const std::size_t written = write_once(output.fd.get(), text.view());
  if (written == 0) {
    logger.missed_metrics_count.add();
    return false;
  }
  output.rest_start = written;
  output.rest_end = text.view().size();
  Commit commit;
  visit_all(commit);
  return true;
}

Result<void> Metrics::flush() {
  const MutexLock lock(mutex_);
  Output* const output = output_.load(std::memory_order_acquire);
  const Claim claim(sampling_);
  if (output != nullptr && claim.held() && !write_line(*output)) {
    return fail(ErrorCode::kBusy, "write a line of metrics: its file or FIFO takes no more");
  }
  return {};
}

void Metrics::flush_from_signal() noexcept {
  Output* const output = output_.load(std::memory_order_acquire);
  const Claim claim(sampling_);
  if (output != nullptr && claim.held()) {
    write_line(*output);
  }
}

namespace {

// Holds the store without ever destroying it: threads and handlers may count until the process is gone.
union Immortal {
  constexpr Immortal() : store() {}
  ~Immortal() {}  // NOLINT(modernize-use-equals-default): would be deleted, as the member's is not trivial
  Immortal(const Immortal&) = delete;
  Immortal& operator=(const Immortal&) = delete;
  Metrics store;
};
constinit Immortal g_metrics;

}  // namespace

Metrics& metrics() {
  return g_metrics.store;
}

}  // namespace mayfly
