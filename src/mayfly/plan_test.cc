#include "mayfly/plan.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>
#include <string>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

using testing::TempDir;

struct FakeProcess {
  std::map<std::string, std::string> variables;
  std::set<std::string> files;

  Surroundings surroundings() const {
    return {[this](const char* name) {
              const auto found = variables.find(name);
              return found == variables.end() ? std::nullopt : std::optional<std::string>(found->second);
            },
            [this](const std::string& path) { return files.contains(path); }};
  }
};

Options run_options() {
  Options options;
  options.subcommand = Subcommand::kRun;
  return options;
}

Options file_options(const std::string& path) {
  Options options;
  options.no_api = true;
  options.config_file = path;
  return options;
}

TEST(DefaultKernel, the_environments_own_wins_whether_it_is_there_or_not) {
  const FakeProcess process{{{"MAYFLY_KERNEL", "/k"}, {"HOME", "/h"}}, {"/h/.local/share/mayfly/kernel"}};
  EXPECT_EQ(default_kernel(process.surroundings()).value(), "/k");
}

TEST(DefaultKernel, the_persons_own_comes_before_the_systems) {
  FakeProcess process{{{"HOME", "/h"}}, {"/h/.local/share/mayfly/kernel", "/usr/share/mayfly/kernel"}};
  EXPECT_EQ(default_kernel(process.surroundings()).value(), "/h/.local/share/mayfly/kernel");
  process.variables["XDG_DATA_HOME"] = "/x";
  EXPECT_EQ(default_kernel(process.surroundings()).value(), "/usr/share/mayfly/kernel");
  process.files.insert("/x/mayfly/kernel");
  EXPECT_EQ(default_kernel(process.surroundings()).value(), "/x/mayfly/kernel");
}

TEST(DefaultKernel, empty_variables_count_as_none) {
  const FakeProcess process{{{"MAYFLY_KERNEL", ""}, {"XDG_DATA_HOME", ""}, {"HOME", "/h"}},
                            {"/h/.local/share/mayfly/kernel"}};
  EXPECT_EQ(default_kernel(process.surroundings()).value(), "/h/.local/share/mayfly/kernel");
}

TEST(DefaultKernel, where_there_is_none_every_place_is_named) {
  const FakeProcess process{{{"HOME", "/h"}}, {}};
  const auto kernel = default_kernel(process.surroundings());
  ASSERT_FALSE(kernel.has_value());
  for (const char* place :
       {"--kernel", "$MAYFLY_KERNEL", "/h/.local/share/mayfly/kernel", "/usr/share/mayfly/kernel"}) {
    EXPECT_NE(kernel.error().message().find(place), std::string::npos) << place;
  }
  EXPECT_TRUE(default_kernel(FakeProcess{}.surroundings())
                  .error()
                  .message()
                  .ends_with("put one at /usr/share/mayfly/kernel"));
}

TEST(Plan, run_becomes_a_machine_by_its_flags) {
  Options options = run_options();
  options.id = "vm-7";
  options.run = {.kernel = "/k",
                 .initrd = "/i",
                 .cmdline = "quiet",
                 .cpus = 3,
                 .memory_mib = 256,
                 .huge_pages = true,
                 .track_dirty_pages = true,
                 .protocol = BootProtocolChoice::kPvh};
  const auto plan = make_plan(options, FakeProcess{}.surroundings());
  ASSERT_TRUE(plan.has_value()) << plan.error().message;
  EXPECT_EQ(plan->vm->machine.vcpu_count, 3U);
  EXPECT_EQ(plan->vm->machine.mem_size_mib, 256U);
  EXPECT_EQ(plan->vm->machine.huge_pages, HugePages::k2M);
  EXPECT_TRUE(plan->vm->machine.track_dirty_pages);
  EXPECT_EQ(plan->vm->boot_source.kernel_image_path, "/k");
  EXPECT_EQ(plan->vm->boot_source.initrd_path, "/i");
  EXPECT_EQ(plan->vm->boot_source.boot_args, "quiet");
  EXPECT_EQ(plan->vm->boot_source.protocol, BootProtocolChoice::kPvh);
  EXPECT_FALSE(plan->logger.has_value());
  EXPECT_FALSE(plan->metrics.has_value());
}

TEST(Plan, run_without_a_kernel_takes_the_default_or_is_refused_as_a_bad_argument) {
  const FakeProcess process{{{"MAYFLY_KERNEL", "/k"}}, {}};
  EXPECT_EQ(make_plan(run_options(), process.surroundings())->vm->boot_source.kernel_image_path, "/k");
  const auto none = make_plan(run_options(), FakeProcess{}.surroundings());
  ASSERT_FALSE(none.has_value());
  EXPECT_EQ(none.error().exit_code, ExitCode::kBadArguments);
  EXPECT_NE(none.error().message.find("--kernel"), std::string::npos);
}

TEST(Plan, a_size_that_no_machine_has_is_refused_by_the_flags_name) {
  Options options = run_options();
  options.run.kernel = "/k";
  options.run.huge_pages = true;
  options.run.memory_mib = 129;
  const auto odd = make_plan(options, FakeProcess{}.surroundings());
  ASSERT_FALSE(odd.has_value());
  EXPECT_EQ(odd.error().exit_code, ExitCode::kBadArguments);
  EXPECT_TRUE(odd.error().message.starts_with("--memory: ")) << odd.error().message;
  options.run = {.kernel = "/k", .initrd = {}, .cmdline = {}, .memory_mib = std::uint64_t{1} << 40};
  EXPECT_EQ(make_plan(options, FakeProcess{}.surroundings()).error().exit_code, ExitCode::kBadArguments);
}

TEST(Plan, a_word_behind_an_image_that_is_none_is_refused_by_the_flags_name) {
  const FakeProcess process{{{"MAYFLY_KERNEL", "/k"}}, {"img"}};
  const auto refused = [&process](const Options& options) {
    const auto plan = make_plan(options, process.surroundings());
    return plan ? "" : std::to_string(static_cast<int>(plan.error().exit_code)) + " " + plan.error().message;
  };
  Options disk = run_options();
  BlockDeviceConfig& drive = disk.run.drives.emplace_back();
  drive.path = "img:readonyl";
  EXPECT_TRUE(refused(disk).starts_with("153 --disk: there is no \"img:readonyl\"")) << refused(disk);
  drive.is_root = true;
  EXPECT_TRUE(refused(disk).starts_with("153 --rootfs: ")) << refused(disk);
  Options restore;
  restore.subcommand = Subcommand::kRestore;
  restore.load.drives = {{.id = "disk1", .path = "img:overly", .overlay = {}}};
  EXPECT_TRUE(refused(restore).starts_with("153 --disk: ")) << refused(restore);
}

TEST(Plan, a_configuration_file_is_read_with_all_its_sections) {
  const TempDir dir;
  std::ofstream(dir.file("c")) << R"({"drives": [], "boot-source": {"kernel_image_path": "/k"},
    "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
    "logger": {"level": "Debug"}, "metrics": {"metrics_path": "/m"}})";
  Options options = file_options(dir.file("c"));
  options.id = "vm-7";
  const auto plan = make_plan(options, FakeProcess{}.surroundings());
  ASSERT_TRUE(plan.has_value()) << plan.error().message;
  EXPECT_EQ(plan->vm->machine.vcpu_count, 2U);
  EXPECT_EQ(plan->vm->machine.mem_size_mib, 64U);
  EXPECT_EQ(plan->vm->boot_source.kernel_image_path, "/k");
  EXPECT_EQ(plan->logger->level, "Debug");
  EXPECT_EQ(plan->metrics->metrics_path, "/m");
}

TEST(Plan, a_configuration_file_that_cannot_be_used_is_a_bad_configuration) {
  const TempDir dir;
  std::ofstream(dir.file("bad")) << "{";
  for (const char* name : {"bad", "missing", ""}) {
    const auto plan = make_plan(file_options(dir.file(name)), FakeProcess{}.surroundings());
    ASSERT_FALSE(plan.has_value()) << name;
    EXPECT_EQ(plan.error().exit_code, ExitCode::kBadConfiguration) << name;
    EXPECT_NE(plan.error().message.find(dir.file(name)), std::string::npos) << plan.error().message;
  }
}

TEST(BeginsAtOnce, a_guest_that_flags_a_file_or_a_snapshot_describe_waits_for_no_call) {
  const TempDir dir;
  std::ofstream(dir.file("c")) << R"({"drives": [], "boot-source": {"kernel_image_path": "/k"}})";
  Options run = run_options();
  run.run.kernel = "/k";
  for (const Options& options : {run, file_options(dir.file("c"))}) {
    EXPECT_TRUE(begins_at_once(options));
    EXPECT_TRUE(make_plan(options, FakeProcess{}.surroundings())->vm.has_value());
  }
  Options restore;
  restore.subcommand = Subcommand::kRestore;
  EXPECT_TRUE(begins_at_once(restore));
}

TEST(BeginsAtOnce, a_monitor_of_which_only_its_api_is_known_waits_for_a_call) {
  Options options;
  options.api_socket = "/s";
  EXPECT_FALSE(begins_at_once(options));
  EXPECT_FALSE(make_plan(options, FakeProcess{}.surroundings())->vm.has_value());
}

TEST(LogConfigOf, the_level_is_info_and_warn_for_run_unless_somebody_names_one) {
  Plan plan;
  EXPECT_EQ(log_config_of(file_options("/c"), plan)->level, LogLevel::kInfo);
  EXPECT_EQ(log_config_of(run_options(), plan)->level, LogLevel::kWarn);
  plan.logger = api::LoggerSection{};
  plan.logger->level = "Error";
  EXPECT_EQ(log_config_of(file_options("/c"), plan)->level, LogLevel::kError);
  Options options = file_options("/c");
  options.log.level = "trace";
  EXPECT_EQ(log_config_of(options, plan)->level, LogLevel::kTrace);
}

TEST(LogConfigOf, flags_win_over_the_section_one_by_one) {
  Plan plan;
  plan.logger = api::LoggerSection{
      .log_path = "/section", .level = {}, .show_level = true, .show_log_origin = false, .module = "section"};
  Options options = file_options("/c");
  const auto by_section = log_config_of(options, plan);
  EXPECT_EQ(by_section->path, "/section");
  EXPECT_EQ(by_section->module, "section");
  EXPECT_EQ(by_section->show_level, true);
  EXPECT_EQ(by_section->show_origin, false);
  options.log.path = "/flag";
  options.log.show_origin = true;
  const auto mixed = log_config_of(options, plan);
  EXPECT_EQ(mixed->path, "/flag");
  EXPECT_EQ(mixed->module, "section");
  EXPECT_EQ(mixed->show_level, true);
  EXPECT_EQ(mixed->show_origin, true);
}

TEST(LogConfigOf, a_level_that_is_none_is_the_fault_of_who_named_it) {
  Plan plan;
  plan.logger = api::LoggerSection{};
  plan.logger->level = "loud";
  Options options = file_options("/c");
  const auto by_section = log_config_of(options, plan);
  EXPECT_EQ(by_section.error().exit_code, ExitCode::kBadConfiguration);
  EXPECT_TRUE(by_section.error().message.starts_with("configuration file /c: logger: "))
      << by_section.error().message;
  options.log.level = "louder";
  const auto by_flag = log_config_of(options, plan);
  EXPECT_EQ(by_flag.error().exit_code, ExitCode::kBadArguments);
  EXPECT_TRUE(by_flag.error().message.starts_with("--level: ")) << by_flag.error().message;
  EXPECT_NE(by_flag.error().message.find("louder"), std::string::npos);
}

TEST(MetricsOutputOf, nobody_asked_for_metrics_means_none) {
  EXPECT_FALSE(metrics_output_of(run_options(), Plan{}).has_value());
}

TEST(MetricsOutputOf, the_flag_wins_over_the_sections_path_and_the_rest_is_the_sections) {
  Plan plan;
  plan.metrics = api::MetricsSection{.metrics_path = "/section", .emit_id = true, .properties = {{"a", "b"}}};
  Options options = file_options("/c");
  options.id = "vm-7";
  EXPECT_EQ(metrics_output_of(options, plan)->path, "/section");
  options.metrics_path = "/flag";
  const auto output = metrics_output_of(options, plan);
  EXPECT_EQ(output->path, "/flag");
  EXPECT_EQ(output->instance_id, "vm-7");
  EXPECT_EQ(output->properties.at("a"), "b");
  plan.metrics->emit_id = false;
  EXPECT_EQ(metrics_output_of(options, plan)->instance_id, "");
}

}  // namespace
}  // namespace mayfly
