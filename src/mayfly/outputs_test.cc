#include "mayfly/outputs.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/log.h"
#include "base/metrics.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

using testing::TempDir;

void expect_failure(const OrFailure<void>& opened, ExitCode code, const std::string& begin) {
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().exit_code, code) << opened.error().message;
  EXPECT_TRUE(opened.error().message.starts_with(begin)) << opened.error().message;
}

TEST(Outputs, a_path_that_a_flag_names_and_nobody_can_write_is_a_bad_argument) {
  const TempDir dir;
  const std::string nowhere = dir.file("no/such");
  Options log;
  log.log.path = nowhere;
  expect_failure(open_log_and_metrics(log, Plan{}), ExitCode::kBadArguments,
                 "--log-path: open log file " + nowhere);
  Options metrics;
  metrics.metrics_path = nowhere;
  expect_failure(open_log_and_metrics(metrics, Plan{}), ExitCode::kBadArguments,
                 "--metrics-path: open metrics file " + nowhere);
  Options module;
  module.log.module = std::string(kMaxModule + 1, 'm');
  expect_failure(open_log_and_metrics(module, Plan{}), ExitCode::kBadArguments, "--module: ");
  Options trace;
  trace.boot_trace = nowhere;
  const auto opened = open_boot_trace(trace, BootTrace::Clock::now());
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().exit_code, ExitCode::kBadArguments);
  EXPECT_TRUE(opened.error().message.starts_with("--boot-trace: open boot trace " + nowhere))
      << opened.error().message;
}

TEST(Outputs, a_path_that_the_configuration_file_names_and_nobody_can_write_is_a_bad_configuration) {
  const TempDir dir;
  const std::string nowhere = dir.file("no/such");
  Plan log;
  log.logger = api::LoggerSection{};
  log.logger->log_path = nowhere;
  expect_failure(open_log_and_metrics(Options{}, log), ExitCode::kBadConfiguration,
                 "logger: open log file " + nowhere);
  Plan metrics;
  metrics.metrics = api::MetricsSection{.metrics_path = nowhere, .emit_id = false, .properties = {}};
  expect_failure(open_log_and_metrics(Options{}, metrics), ExitCode::kBadConfiguration,
                 "metrics: open metrics file " + nowhere);
}

TEST(Outputs, an_output_that_is_a_drives_image_or_its_overlay_is_refused_before_it_is_opened) {
  const TempDir dir;
  const std::string image = dir.file("disk");
  std::ofstream(image) << "contents";
  Plan plan;
  plan.vm.emplace().drives.emplace_back().path = image;
  Options options;
  options.log.path = image;
  expect_failure(keep_inputs_from_outputs(options, plan), ExitCode::kBadArguments,
                 "--log-path " + image + ": is a drive's image, which it would overwrite");
  plan.vm->drives.back().path = dir.file("base");
  plan.vm->drives.back().overlay = BlockOverlayConfig{.path = image};
  expect_failure(keep_inputs_from_outputs(options, plan), ExitCode::kBadArguments,
                 "--log-path " + image + ": is a drive's overlay, which it would overwrite");
}

TEST(Outputs, an_output_that_is_an_overlay_that_is_still_to_be_made_is_refused) {
  const TempDir dir;
  std::filesystem::create_directory(dir.file("folder"));
  std::filesystem::create_directory_symlink(dir.file("folder"), dir.file("link_to_folder"));
  std::filesystem::create_symlink("folder/overlay", dir.file("link_to_overlay"));
  std::filesystem::create_symlink("loop", dir.file("loop"));
  Plan plan;
  BlockDeviceConfig& drive = plan.vm.emplace().drives.emplace_back();
  drive.path = dir.file("base");
  drive.overlay = BlockOverlayConfig{.path = dir.file("folder/overlay")};
  for (const char* const name : {"folder/overlay", "folder/./overlay", "folder/../folder/overlay",
                                 "link_to_folder/overlay", "link_to_overlay"}) {
    const std::string path = dir.file(name);
    const std::string begin = path + ": is a drive's overlay, which it would overwrite";
    Options options;
    options.boot_trace = path;
    expect_failure(keep_inputs_from_outputs(options, plan), ExitCode::kBadArguments, "--boot-trace " + begin);
    options = {};
    options.log.path = path;
    expect_failure(keep_inputs_from_outputs(options, plan), ExitCode::kBadArguments, "--log-path " + begin);
    options = {};
    options.metrics_path = path;
    expect_failure(keep_inputs_from_outputs(options, plan), ExitCode::kBadArguments,
                   "--metrics-path " + begin);
    Plan with_logger = plan;
    with_logger.logger = api::LoggerSection{};
    with_logger.logger->log_path = path;
    expect_failure(keep_inputs_from_outputs(Options{}, with_logger), ExitCode::kBadConfiguration,
                   "logger " + begin);
  }
  EXPECT_FALSE(std::filesystem::exists(dir.file("folder/overlay")));
  for (const char* const name : {"overlay", "folder/other", "loop", "no/such/overlay", "folder/overlay/"}) {
    Options options;
    options.boot_trace = dir.file(name);
    EXPECT_TRUE(keep_inputs_from_outputs(options, plan).has_value()) << name;
  }
}

TEST(Outputs, a_trace_that_would_overwrite_the_log_is_refused) {
  Options options;
  options.log.path = "/tmp/one";
  options.boot_trace = "/tmp/one";
  expect_failure(keep_inputs_from_outputs(options, Plan{}), ExitCode::kBadArguments,
                 "--boot-trace /tmp/one: ");
  // However they are written, and before there is a file.
  const TempDir dir;
  options.log.path = dir.file("log");
  options.boot_trace = dir.file("./log");
  expect_failure(keep_inputs_from_outputs(options, Plan{}), ExitCode::kBadArguments, "--boot-trace ");
}

TEST(Outputs, what_is_opened_is_written_to_under_the_machines_id) {
  const TempDir dir;
  // In a process of its own: log and metrics are set up once in a process.
  EXPECT_EXIT(
      {
        Options options;
        options.id = "vm-7";
        options.log.path = dir.file("log");
        options.metrics_path = dir.file("metrics");
        const bool opened = open_log_and_metrics(options, Plan{}).has_value();
        LOG_INFO("a line");
        LOG_DEBUG("a line too many");
        ::_exit(opened && metrics().flush() ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
  const auto log = testing::read_lines(dir.file("log"));
  ASSERT_EQ(log.size(), 1U);
  EXPECT_NE(log[0].find("[vm-7:"), std::string::npos) << log[0];
  EXPECT_EQ(testing::read_lines(dir.file("metrics")).size(), 1U);
}

TEST(Outputs, the_times_of_the_start_are_those_since_the_caller_began_it) {
  const ApiServerMetrics& group = metrics().api_server;
  record_startup_times({});
  EXPECT_EQ(group.process_startup_time_us.value(), 0U);
  EXPECT_EQ(group.process_startup_time_cpu_us.value(), 0U);
  const std::uint64_t before_us = monotonic_ns() / 1000;
  record_startup_times({.monotonic_us = before_us - 5'000'000, .cpu_us = 0, .parent_cpu_us = 7'000'000});
  EXPECT_GE(group.process_startup_time_us.value(), 5'000'000U);
  EXPECT_LE(group.process_startup_time_us.value(), 5'000'000U + monotonic_ns() / 1000 - before_us);
  EXPECT_GE(group.process_startup_time_cpu_us.value(), 7'000'000U);
}

TEST(Outputs, no_trace_is_opened_unless_one_is_asked_for) {
  const auto trace = open_boot_trace(Options{}, BootTrace::Clock::now());
  ASSERT_TRUE(trace.has_value());
  EXPECT_EQ(*trace, nullptr);
}

}  // namespace
}  // namespace mayfly
