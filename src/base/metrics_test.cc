#include "base/metrics.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <limits>
#include <set>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using testing::read_lines;
using testing::TempDir;

constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();
constexpr Clock kFixedClock{[]() -> std::uint64_t { return 0; },
                            []() -> std::uint64_t { return 1'700'000'000'123'456'789U; }};

// The text of a group in a line, from its brace to the last one: groups may hold objects.
std::string group(const std::string& line, const std::string& name) {
  const std::size_t key = line.find("\"" + name + "\":{");
  if (key == std::string::npos) {
    return "(no group " + name + ")";
  }
  const std::size_t start = line.find('{', key);
  int depth = 0;
  for (std::size_t end = start; end < line.size(); ++end) {
    depth += line[end] == '{' ? 1 : line[end] == '}' ? -1 : 0;
    if (depth == 0) {
      return line.substr(start, end - start + 1);
    }
  }
  return "(group " + name + " does not end)";
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class MetricsTest : public ::testing::Test {
 protected:
  std::string path() const { return dir_.file("metrics"); }
  std::string flushed_line() {
    EXPECT_TRUE(metrics_.flush().has_value());
    const auto lines = read_lines(path());
    return lines.empty() ? "(no line)" : lines.back();
  }

  TempDir dir_;
  Metrics metrics_{kFixedClock};
};

TEST_F(MetricsTest, a_flush_without_an_output_does_nothing) {
  EXPECT_TRUE(metrics_.flush().has_value());
  metrics_.flush_from_signal();
}

TEST_F(MetricsTest, a_line_starts_with_the_time_and_has_every_group) {
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  const std::string line = flushed_line();
  EXPECT_TRUE(line.starts_with("{\"utc_timestamp_ms\":1700000000123,\"api_server\":{")) << line;
  EXPECT_TRUE(line.ends_with("}}"));
  for (const char* name : {"api_server", "block", "net", "vcpu", "uart", "i8042", "vmm", "seccomp", "signals",
                           "latencies_us", "mmds", "logger", "get_api_requests", "put_api_requests",
                           "patch_api_requests", "deprecated_api", "interrupts"}) {
    EXPECT_TRUE(group(line, name).starts_with("{\"")) << name;
  }
}

TEST_F(MetricsTest, the_fields_that_dashboards_read_are_there) {
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  const std::string line = flushed_line();
  const auto expect_fields = [&](const char* name, const std::vector<const char*>& fields) {
    for (const char* field : fields) {
      EXPECT_TRUE(has(group(line, name), std::string("\"").append(field).append("\":0")))
          << name << "." << field;
    }
  };
  expect_fields(
      "block", {"read_bytes", "write_bytes", "read_count", "write_count", "flush_count", "invalid_reqs_count",
                "execute_fails", "rate_limiter_throttled_events", "io_engine_throttled_events"});
  expect_fields("net", {"rx_bytes_count", "rx_packets_count", "tx_bytes_count", "tx_packets_count",
                        "rx_fails", "tx_fails", "tx_malformed_frames", "tx_spoofed_mac_count",
                        "rx_rate_limiter_throttled", "tx_rate_limiter_throttled"});
  expect_fields("vcpu", {"exit_io_in", "exit_io_out", "exit_mmio_read", "exit_mmio_write", "failures"});
  expect_fields("latencies_us",
                {"full_create_snapshot", "diff_create_snapshot", "load_snapshot", "pause_vm", "resume_vm"});
  expect_fields("seccomp", {"num_faults"});
  const std::string zero = "_agg\":{\"min_us\":0,\"max_us\":0,\"sum_us\":0}";
  for (const char* field : {"read", "write"}) {
    EXPECT_TRUE(has(group(line, "block"), "\"" + std::string(field) + zero));
  }
  for (const char* field : {"exit_io_in", "exit_io_out", "exit_mmio_read", "exit_mmio_write"}) {
    EXPECT_TRUE(has(group(line, "vcpu"), "\"" + std::string(field) + zero));
  }
}

TEST_F(MetricsTest, counters_are_since_the_last_line_and_gauges_as_they_are) {
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  metrics_.vcpu.exit_io_in.add(5);
  metrics_.latencies_us.pause_vm.set(7);
  std::string line = flushed_line();
  EXPECT_TRUE(has(line, "\"exit_io_in\":5")) << line;
  EXPECT_TRUE(has(line, "\"pause_vm\":7"));
  metrics_.vcpu.exit_io_in.add();
  line = flushed_line();
  EXPECT_TRUE(has(line, "\"exit_io_in\":1,"));
  EXPECT_TRUE(has(line, "\"pause_vm\":7"));
  EXPECT_TRUE(has(flushed_line(), "\"exit_io_in\":0,"));
  EXPECT_EQ(metrics_.vcpu.exit_io_in.value(), 6U);
}

TEST_F(MetricsTest, latencies_keep_their_extremes_and_report_the_sum_since_the_last_line) {
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  metrics_.vcpu.exit_io_in_agg.record_us(20);
  metrics_.vcpu.exit_io_in_agg.record_us(3);
  metrics_.vcpu.exit_io_in_agg.record_us(10);
  EXPECT_TRUE(has(flushed_line(), "\"exit_io_in_agg\":{\"min_us\":3,\"max_us\":20,\"sum_us\":33}"));
  metrics_.vcpu.exit_io_in_agg.record_us(0);
  EXPECT_TRUE(has(flushed_line(), "\"exit_io_in_agg\":{\"min_us\":1,\"max_us\":20,\"sum_us\":0}"));
  { const ScopedLatency timed(metrics_.vcpu.exit_io_out_agg); }
  EXPECT_GE(metrics_.vcpu.exit_io_out_agg.min_us(), 1U);
}

TEST_F(MetricsTest, a_device_has_a_group_of_its_own_and_a_part_in_the_sum) {
  BlockMetrics& root = metrics_.block_device("rootfs");
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  BlockMetrics& scratch = metrics_.block_device("scratch_1");
  EXPECT_EQ(&metrics_.block_device("rootfs"), &root);
  root.read_count.add(2);
  root.read_agg.record_us(8);
  scratch.read_count.add(3);
  scratch.read_agg.record_us(4);
  metrics_.net_device("eth0").tx_fails.add(9);
  std::string line = flushed_line();
  EXPECT_TRUE(has(group(line, "block_rootfs"), "\"read_count\":2,"));
  EXPECT_TRUE(has(group(line, "block_scratch_1"), "\"read_count\":3,"));
  EXPECT_TRUE(has(group(line, "block"), "\"read_count\":5,"));
  EXPECT_TRUE(has(group(line, "block"), "\"read_agg\":{\"min_us\":4,\"max_us\":8,\"sum_us\":12}")) << line;
  EXPECT_TRUE(has(group(line, "net_eth0"), "\"tx_fails\":9,"));
  EXPECT_TRUE(has(group(line, "net"), "\"tx_fails\":9,"));
  scratch.read_count.add(1);
  line = flushed_line();
  EXPECT_TRUE(has(group(line, "block_rootfs"), "\"read_count\":0,"));
  EXPECT_TRUE(has(group(line, "block"), "\"read_count\":1,"));
  EXPECT_TRUE(has(group(line, "block"), "\"read_agg\":{\"min_us\":4,\"max_us\":8,\"sum_us\":0}"));
}

TEST_F(MetricsTest, the_id_and_the_properties_follow_the_time_as_valid_json) {
  ASSERT_TRUE(metrics_
                  .open({.path = path(),
                         .instance_id = "vm-1",
                         .properties = {{"a\"b", "line\nbreak"}, {"z", std::string(100, '\x01')}}})
                  .has_value());
  std::string controls;
  for (int i = 0; i < 100; ++i) {
    controls += "\\u0001";
  }
  EXPECT_TRUE(
      flushed_line().starts_with("{\"utc_timestamp_ms\":1700000000123,\"id\":\"vm-1\",\"properties\":{"
                                 "\"a\\\"b\":\"line\\u000abreak\",\"z\":\"" +
                                 controls + "\"},\"api_server\":{"));
}

TEST_F(MetricsTest, an_output_can_be_set_once_but_again_after_a_failure) {
  EXPECT_EQ(
      metrics_.open({.path = dir_.file("no/where"), .instance_id = {}, .properties = {}}).error().code(),
      ErrorCode::kNotFound);
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  EXPECT_EQ(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).error().code(),
            ErrorCode::kInvalidArgument);
}

TEST_F(MetricsTest, lines_are_appended_to_what_is_in_the_file) {
  { std::ofstream(path()) << "{}\n"; }
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  flushed_line();
  EXPECT_EQ(read_lines(path()).size(), 2U);
}

// Every number of the line at its longest.
class Maximize final : public MetricVisitor {
 public:
  void begin_group(std::string_view, std::string_view) override {}
  void field(const char*, const char*, Counter& counter) override { counter.add(kMax - counter.value()); }
  void field(const char*, const char*, Gauge& gauge) override { gauge.set(kMax); }
  void field(const char*, const char*, Latency& latency) override {
    latency.record_us(kMax - latency.sum_us().value());
  }
  void end_group() override {}
};

TEST_F(MetricsTest, the_longest_line_fits_whatever_the_number_of_devices) {
  ASSERT_TRUE(
      metrics_.open({.path = path(), .instance_id = std::string(64, 'i'), .properties = {}}).has_value());
  for (int i = 0; i < 20; ++i) {
    const std::string id = std::string(62, 'd') + std::to_string(10 + i);
    metrics_.block_device(id);
    metrics_.net_device(id);
  }
  Maximize maximize;
  metrics_.visit(maximize);
  EXPECT_TRUE(flushed_line().ends_with("}}"));
  EXPECT_EQ(metrics_.logger.metrics_fails.value(), kMax);
}

// What a reader of a FIFO finds in it now.
std::string drain(const UniqueFd& fd) {
  std::string text;
  std::array<char, 65536> chunk{};
  for (ssize_t got = 0; (got = ::read(fd.get(), chunk.data(), chunk.size())) > 0;) {
    text.append(chunk.data(), static_cast<std::size_t>(got));
  }
  return text;
}

// A FIFO takes pages: lines of several sizes, so that it takes some of them in part.
class MetricsFifoTest : public MetricsTest, public ::testing::WithParamInterface<std::size_t> {};
INSTANTIATE_TEST_SUITE_P(LineSizes, MetricsFifoTest, ::testing::Values(1, 4'000, 8'000, 12'000));

TEST_P(MetricsFifoTest, a_fifo_that_nobody_reads_loses_lines_but_no_counts_and_never_blocks) {
  const std::string fifo = dir_.fifo("fifo");
  ASSERT_TRUE(
      metrics_.open({.path = fifo, .instance_id = {}, .properties = {{"pad", std::string(GetParam(), 'p')}}})
          .has_value());
  std::uint64_t lines = 0;
  while (metrics_.flush().has_value()) {
    ASSERT_LT(++lines, 100U);
    metrics_.vcpu.failures.add();
  }
  EXPECT_GT(lines, 1U);
  EXPECT_EQ(metrics_.logger.missed_metrics_count.value(), 1U);
  metrics_.vcpu.failures.add();
  EXPECT_FALSE(metrics_.flush().has_value());

  const UniqueFd reader = open_file(fifo, O_RDONLY | O_NONBLOCK, "fifo").value();
  std::string text = drain(reader);
  ASSERT_TRUE(metrics_.flush().has_value());
  text += drain(reader);
  // All lines are whole, and every failure is in one of them.
  std::uint64_t failures = 0;
  std::uint64_t missed = 0;
  std::uint64_t seen = 0;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line); ++seen) {
    EXPECT_TRUE(line.starts_with("{\"utc_timestamp_ms\":") && line.ends_with("}}")) << line;
    failures += std::stoull(line.substr(line.find("\"failures\":") + 11));
    missed += std::stoull(line.substr(line.find("\"missed_metrics_count\":") + 23));
  }
  EXPECT_EQ(seen, lines + 1);
  EXPECT_EQ(failures, lines + 1);
  EXPECT_EQ(missed, 2U);
}

TEST_F(MetricsTest, a_flush_from_a_signal_writes_a_line_unless_another_is_under_way) {
  BlockMetrics& disk = metrics_.block_device("disk");
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  disk.flush_count.add(4);
  metrics_.flush_from_signal();
  ASSERT_EQ(read_lines(path()).size(), 1U);
  EXPECT_TRUE(has(group(read_lines(path())[0], "block_disk"), "\"flush_count\":4,"));

  class Interrupted final : public MetricVisitor {
   public:
    explicit Interrupted(Metrics& metrics) : metrics_(metrics) {}
    void begin_group(std::string_view, std::string_view) override { metrics_.flush_from_signal(); }
    void field(const char*, const char*, Counter&) override {}
    void field(const char*, const char*, Gauge&) override {}
    void field(const char*, const char*, Latency&) override {}
    void end_group() override {}

   private:
    Metrics& metrics_;
  };
  Interrupted interrupted(metrics_);
  metrics_.visit(interrupted);
  EXPECT_EQ(read_lines(path()).size(), 1U);
}

TEST_F(MetricsTest, every_count_of_every_thread_is_in_exactly_one_line) {
  constexpr int kThreads = 4;
  constexpr int kCounts = 10'000;
  ASSERT_TRUE(metrics_.open({.path = path(), .instance_id = {}, .properties = {}}).has_value());
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      NetMetrics& net = metrics_.net_device("eth0");
      for (int count = 0; count < kCounts; ++count) {
        net.rx_fails.add();
        net.tap_write_agg.record_us(2);
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(metrics_.flush().has_value());
  }
  for (auto& thread : threads) {
    thread.join();
  }
  ASSERT_TRUE(metrics_.flush().has_value());
  std::uint64_t sum = 0;
  std::uint64_t device_sum = 0;
  for (const std::string& line : read_lines(path())) {
    const auto fails = [&](const char* name) {
      const std::string text = group(line, name);
      const std::size_t at = text.find("\"rx_fails\":");
      return at == std::string::npos ? 0 : std::stoull(text.substr(at + 11));
    };
    sum += fails("net");
    device_sum += fails("net_eth0");
  }
  EXPECT_EQ(sum, std::uint64_t{kThreads} * kCounts);
  EXPECT_EQ(device_sum, std::uint64_t{kThreads} * kCounts);
}

TEST_F(MetricsTest, every_field_has_a_sentence_of_help_and_a_name_of_its_own) {
  class Check final : public MetricVisitor {
   public:
    void begin_group(std::string_view group, std::string_view device) override {
      EXPECT_TRUE(names_.insert(std::string(group).append(device)).second) << group;
      fields_.clear();
    }
    void field(const char* name, const char* help, Counter&) override { check(name, help); }
    void field(const char* name, const char* help, Gauge&) override { check(name, help); }
    void field(const char* name, const char* help, Latency&) override { check(name, help); }
    void end_group() override { EXPECT_FALSE(fields_.empty()); }

   private:
    void check(const char* name, const char* help) {
      EXPECT_TRUE(fields_.insert(name).second) << name;
      EXPECT_GE(std::string_view(help).size(), 8U) << name;
    }
    std::set<std::string> names_;
    std::set<std::string> fields_;
  };
  Check check;
  metrics_.visit(check);
}

TEST(ProcessMetrics, there_is_one_store_for_the_process) {
  EXPECT_EQ(&metrics(), &metrics());
}

}  // namespace
}  // namespace mayfly
