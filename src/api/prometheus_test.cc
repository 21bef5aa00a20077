#include "api/prometheus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <sstream>
#include <string>

namespace mayfly::api {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class PrometheusTest : public ::testing::Test {
 protected:
  std::string text(const std::string& id = "vm-7") {
    return prometheus_text(*store_, {.instance_id = id, .monitor_version = "9.8.7", .state = "Running"});
  }

  const std::unique_ptr<Metrics> store_ = std::make_unique<Metrics>();
};

TEST_F(PrometheusTest, counters_end_in_total_and_lose_their_count) {
  store_->i8042.read_count.add(5);
  store_->uart.rate_limiter_dropped_bytes.add(7);
  EXPECT_THAT(text(), HasSubstr("# HELP mayfly_i8042_read_total Reads from the keyboard controller\n"
                                "# TYPE mayfly_i8042_read_total counter\n"
                                "mayfly_i8042_read_total{id=\"vm-7\"} 5\n"));
  EXPECT_THAT(text(), HasSubstr("\nmayfly_uart_rate_limiter_dropped_bytes_total{id=\"vm-7\"} 7\n"));
}

TEST_F(PrometheusTest, times_are_in_seconds) {
  store_->latencies_us.pause_vm.set(1234567);
  store_->api_server.process_startup_time_us.set(42);
  store_->vcpu.exit_io_in_agg.record_us(5);
  store_->vcpu.exit_io_in_agg.record_us(2'000'000);
  EXPECT_THAT(text(), HasSubstr("# TYPE mayfly_latencies_pause_vm_seconds gauge\n"
                                "mayfly_latencies_pause_vm_seconds{id=\"vm-7\"} 1.234567\n"));
  EXPECT_THAT(text(), HasSubstr("\nmayfly_api_server_process_startup_time_seconds{id=\"vm-7\"} 0.000042\n"));
  EXPECT_THAT(text(), HasSubstr("\nmayfly_vcpu_exit_io_in_min_seconds{id=\"vm-7\"} 0.000005\n"));
  EXPECT_THAT(text(), HasSubstr("\nmayfly_vcpu_exit_io_in_max_seconds{id=\"vm-7\"} 2.000000\n"));
  EXPECT_THAT(text(), HasSubstr("# TYPE mayfly_vcpu_exit_io_in_seconds_total counter\n"
                                "mayfly_vcpu_exit_io_in_seconds_total{id=\"vm-7\"} 2.000005\n"));
}

TEST_F(PrometheusTest, devices_are_labels_of_one_name_and_have_no_sum) {
  EXPECT_THAT(text(), Not(HasSubstr("mayfly_block_")));
  store_->block_device("data").read_bytes.add(1);
  store_->block_device("root").read_bytes.add(2);
  store_->net_device("eth").rx_bytes_count.add(3);
  const std::string all = text();
  EXPECT_THAT(all, HasSubstr("mayfly_block_read_bytes_total{id=\"vm-7\",drive=\"root\"} 2\n"
                             "mayfly_block_read_bytes_total{id=\"vm-7\",drive=\"data\"} 1\n#"));
  EXPECT_THAT(all, HasSubstr("\nmayfly_net_rx_bytes_total{id=\"vm-7\",interface=\"eth\"} 3\n"));
  EXPECT_THAT(all, Not(HasSubstr("drive=\"\"")));
}

TEST_F(PrometheusTest, every_name_is_described_once_before_its_samples) {
  store_->block_device("root");
  store_->net_device("eth");
  std::set<std::string> described;
  std::string current;
  std::istringstream lines(text());
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# HELP ")) {
      current = line.substr(7, line.find(' ', 7) - 7);
      EXPECT_TRUE(described.insert(current).second) << line;
    } else if (!line.starts_with("# TYPE ")) {
      EXPECT_EQ(line.substr(0, line.find('{')), current);
    }
  }
  EXPECT_GT(described.size(), 100U);
}

TEST_F(PrometheusTest, state_and_version_are_told) {
  EXPECT_THAT(text(), HasSubstr("\nmayfly_vm_info{id=\"vm-7\",version=\"9.8.7\"} 1\n"));
  EXPECT_THAT(text(), HasSubstr("\nmayfly_vm_state{id=\"vm-7\",state=\"Running\"} 1\n"));
  EXPECT_THAT(text(), HasSubstr("\nmayfly_vm_state{id=\"vm-7\",state=\"Paused\"} 0\n"));
}

TEST_F(PrometheusTest, label_values_are_escaped) {
  EXPECT_THAT(text("a\"b\\c\nd"), HasSubstr("{id=\"a\\\"b\\\\c\\nd\"} "));
}

}  // namespace
}  // namespace mayfly::api
