#include "mayfly/options.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/exit_code.h"
#include "mayfly/version.h"

namespace mayfly {
namespace {

using Arguments = std::vector<std::string>;

tl::expected<Options, ParseStop> parse(const Arguments& arguments) {
  std::vector<const char*> pointers;
  pointers.reserve(arguments.size());
  for (const std::string& argument : arguments) {
    pointers.push_back(argument.c_str());
  }
  return parse_options(static_cast<int>(pointers.size()), pointers.data());
}

std::string joined(const Arguments& arguments) {
  std::string text = "mayfly";
  for (const std::string& argument : arguments) {
    text.append(" ").append(argument);
  }
  return text;
}

Options parsed(const Arguments& arguments) {
  auto options = parse(arguments);
  EXPECT_TRUE(options.has_value()) << joined(arguments) << ": " << options.error().text;
  return options ? *options : Options{};
}

void expect_refused(const Arguments& arguments, const std::string& named) {
  const auto options = parse(arguments);
  ASSERT_FALSE(options.has_value()) << joined(arguments);
  EXPECT_EQ(options.error().exit_code, static_cast<int>(ExitCode::kBadArguments)) << joined(arguments);
  EXPECT_NE(options.error().text.find(named), std::string::npos)
      << joined(arguments) << ": " << options.error().text;
  EXPECT_TRUE(options.error().hint.starts_with("Try 'mayfly")) << options.error().hint;
}

TEST(Options, run_alone_takes_the_defaults) {
  const Options options = parsed({"run"});
  EXPECT_EQ(options.subcommand, Subcommand::kRun);
  EXPECT_EQ(options.id, "anonymous-instance");
  EXPECT_FALSE(options.run.kernel.has_value());
  EXPECT_FALSE(options.run.initrd.has_value());
  EXPECT_FALSE(options.run.cmdline.has_value());
  EXPECT_EQ(options.run.cpus, 1U);
  EXPECT_EQ(options.run.memory_mib, 128U);
  EXPECT_FALSE(options.run.huge_pages);
  EXPECT_EQ(options.run.protocol, BootProtocolChoice::kAuto);
  EXPECT_FALSE(options.metrics_path.has_value());
  EXPECT_FALSE(options.boot_trace.has_value());
  EXPECT_FALSE(options.log.path.has_value());
  EXPECT_FALSE(options.log.level.has_value());
  EXPECT_FALSE(options.log.show_level);
  EXPECT_FALSE(options.log.show_origin);
}

TEST(Options, run_takes_every_flag) {
  const Options options = parsed({"run",
                                  "--kernel",
                                  "/k",
                                  "--initrd",
                                  "/i",
                                  "--cpus",
                                  "32",
                                  "--memory",
                                  "2G",
                                  "--cmdline",
                                  "a b=c",
                                  "--huge-pages",
                                  "--track-dirty-pages",
                                  "--boot-protocol",
                                  "linux64",
                                  "--id",
                                  "vm-7",
                                  "--metrics-path",
                                  "/m",
                                  "--boot-trace",
                                  "/t",
                                  "--log-path",
                                  "/l",
                                  "--level",
                                  "debug",
                                  "--module",
                                  "vmm",
                                  "--show-level",
                                  "--show-log-origin"});
  EXPECT_EQ(options.run.kernel, "/k");
  EXPECT_EQ(options.run.initrd, "/i");
  EXPECT_EQ(options.run.cpus, 32U);
  EXPECT_EQ(options.run.memory_mib, 2048U);
  EXPECT_EQ(options.run.cmdline, "a b=c");
  EXPECT_TRUE(options.run.huge_pages);
  EXPECT_TRUE(options.run.track_dirty_pages);
  EXPECT_EQ(options.run.protocol, BootProtocolChoice::kLinux64);
  EXPECT_EQ(options.id, "vm-7");
  EXPECT_EQ(options.metrics_path, "/m");
  EXPECT_EQ(options.boot_trace, "/t");
  EXPECT_EQ(options.log.path, "/l");
  EXPECT_EQ(options.log.level, "debug");
  EXPECT_EQ(options.log.module, "vmm");
  EXPECT_TRUE(options.log.show_level);
  EXPECT_TRUE(options.log.show_origin);
}

TEST(Options, the_dialects_own_flags_are_taken_without_a_subcommand) {
  const Options options = parsed({"--no-api",
                                  "--config-file",
                                  "/c",
                                  "--id",
                                  "x",
                                  "--metrics-path",
                                  "/m",
                                  "--boot-trace",
                                  "/t",
                                  "--log-path",
                                  "/l",
                                  "--level",
                                  "Off",
                                  "--module",
                                  "devices::serial",
                                  "--show-level",
                                  "--show-log-origin",
                                  "--start-time-us",
                                  "18446744073709551615",
                                  "--start-time-cpu-us",
                                  "2",
                                  "--parent-cpu-time-us",
                                  "3"});
  EXPECT_EQ(options.subcommand, Subcommand::kMonitor);
  EXPECT_TRUE(options.no_api);
  EXPECT_EQ(options.config_file, "/c");
  EXPECT_EQ(options.id, "x");
  EXPECT_EQ(options.metrics_path, "/m");
  EXPECT_EQ(options.boot_trace, "/t");
  EXPECT_EQ(options.log.path, "/l");
  EXPECT_EQ(options.log.level, "Off");
  EXPECT_EQ(options.log.module, "devices::serial");
  EXPECT_TRUE(options.log.show_level);
  EXPECT_TRUE(options.log.show_origin);
  EXPECT_EQ(options.process_start.monotonic_us, ~std::uint64_t{0});
  EXPECT_EQ(options.process_start.cpu_us, 2U);
  EXPECT_EQ(options.process_start.parent_cpu_us, 3U);
}

TEST(Options, common_flags_may_stand_before_the_subcommand) {
  const Options options = parsed({"--id", "x", "run", "--cpus=2"});
  EXPECT_EQ(options.subcommand, Subcommand::kRun);
  EXPECT_EQ(options.id, "x");
  EXPECT_EQ(options.run.cpus, 2U);
}

TEST(Options, doctor_is_a_subcommand_of_its_own) {
  EXPECT_EQ(parsed({"doctor"}).subcommand, Subcommand::kDoctor);
}

TEST(Options, a_memory_size_is_in_mib_or_carries_its_unit) {
  for (const auto& [text, mib] : std::vector<std::pair<std::string, std::uint64_t>>{{"1", 1},
                                                                                    {"128", 128},
                                                                                    {"512M", 512},
                                                                                    {"512m", 512},
                                                                                    {"1024K", 1},
                                                                                    {"3G", 3072},
                                                                                    {"1T", 1048576}}) {
    EXPECT_EQ(parsed({"run", "--memory", text}).run.memory_mib, mib) << text;
  }
}

TEST(Options, a_number_of_vcpus_is_decimal_whatever_it_begins_with) {
  EXPECT_EQ(parsed({"run", "--cpus", "010"}).run.cpus, 10U);
}

TEST(Options, values_that_are_none_are_refused_by_the_flags_name) {
  for (const char* text : {"", "0", "1K", "1025K", "12Q", "M", "-1", "1.5G", "0x10", "99999999999999999999G",
                           "17592186044416M", " 1", "1 "}) {
    expect_refused({"run", "--memory", text}, "--memory");
  }
  for (const char* text : {"0", "33", "-1", "1.5", "two", "", "4294967297", "+1", " 1"}) {
    expect_refused({"run", "--cpus", text}, "--cpus");
  }
  for (const char* text : {"bios", "PVH", ""}) {
    expect_refused({"run", "--boot-protocol", text}, "--boot-protocol");
  }
  const std::string too_long(65, 'x');
  for (const std::string& text : {std::string("no/slash"), std::string(""), std::string("a b"), too_long}) {
    expect_refused({"run", "--id", text}, "--id");
    expect_refused({"--no-api", "--config-file", "/c", "--id", text}, "--id");
  }
  for (const char* text : {"loud", ""}) {
    expect_refused({"run", "--level", text}, "--level");
  }
  expect_refused({"--no-api", "--config-file", "/c", "--start-time-us", "-1"}, "--start-time-us");
  expect_refused({"--no-api", "--config-file", "/c", "--start-time-cpu-us", "now"}, "--start-time-cpu-us");
}

TEST(Options, flags_that_are_none_or_stand_in_the_wrong_place_are_refused_by_name) {
  expect_refused({"--frobnicate"}, "--frobnicate");
  expect_refused({"run", "--frobnicate"}, "--frobnicate");
  expect_refused({"run", "kernel"}, "kernel");
  expect_refused({"frobnicate"}, "frobnicate");
  expect_refused({"doctor", "--id", "x"}, "--id");
  expect_refused({"--kernel", "/k"}, "--kernel");
  expect_refused({"run", "--kernel"}, "--kernel");
  expect_refused({"run", "--id", "a", "--id", "b"}, "--id");
  expect_refused({"run", "doctor"}, "doctor");
}

TEST(Options, a_refusal_names_the_argument_and_the_way_out) {
  const auto text_of = [](const Arguments& arguments) { return parse(arguments).error().text; };
  EXPECT_EQ(text_of({"run", "--kernel"}), "--kernel needs a value: --kernel FILE");
  EXPECT_EQ(text_of({"run", "--kernel="}), "--kernel needs a value: --kernel FILE");
  EXPECT_EQ(text_of({"--log-path"}), "--log-path needs a value: --log-path FILE");
  EXPECT_EQ(text_of({"run", "--id", "a", "--id", "b"}), "--id is given more than once");
  EXPECT_EQ(text_of({"run", "first", "second"}), "there is no argument \"first\"");
  EXPECT_EQ(text_of({"frobnicate"}), "there is no argument \"frobnicate\"");
  EXPECT_EQ(text_of({"rnu", "--kernel", "k"}), "there is no argument \"rnu\"; did you mean run?");
  EXPECT_EQ(text_of({"run", "--kernal", "k"}), "there is no argument \"--kernal\"; did you mean --kernel?");
  EXPECT_EQ(text_of({"run", "--boot-timer"}),
            "there is no argument \"--boot-timer\" here; it goes with 'mayfly' without a subcommand");
  EXPECT_EQ(text_of({"run", "--huge-pages=x"}), "--huge-pages takes no value");
}

TEST(Options, a_flag_without_its_value_is_named_with_what_it_wants_whatever_comes_next) {
  const auto text_of = [](const Arguments& arguments) {
    const auto options = parse(arguments);
    return options ? "taken: " + joined(arguments) : options.error().text;
  };
  EXPECT_EQ(text_of({"run", "--kernel", ""}), "--kernel needs a value: --kernel FILE");
  EXPECT_EQ(text_of({"run", "--kernel=", "x"}), "--kernel needs a value: --kernel FILE");
  EXPECT_EQ(text_of({"--api-sock=", "--id", "x"}), "--api-sock needs a value: --api-sock PATH");
  EXPECT_EQ(text_of({"restore", "s", "m", "--working-set", ""}),
            "--working-set needs a value: --working-set FILE");
  EXPECT_EQ(text_of({"clone", "web", "--serial", ""}), "--serial needs a value: --serial FILE");
  EXPECT_EQ(text_of({"merge", "a", "b", "--output", ""}), "--output needs a value: --output FILE");
  EXPECT_EQ(text_of({"clone", "web", "-n="}), "--count needs a value: --count N");
  EXPECT_EQ(text_of({"run", "--kernel", "--disk", "x"}),
            "--kernel needs a value: --kernel FILE, and \"--disk\" comes next");
  EXPECT_EQ(text_of({"run", "--kernel", "--dsk=x"}),
            "--kernel needs a value: --kernel FILE, and \"--dsk=x\" comes next");
  EXPECT_EQ(text_of({"run", "--cmdline", "--cpus=2"}),
            "--cmdline needs a value: --cmdline TEXT, and \"--cpus=2\" comes next");
  EXPECT_EQ(text_of({"run", "--disk", "a", "--disk"}),
            "--disk needs a value: --disk IMAGE[:ro][:overlay[=FILE]]");
  EXPECT_EQ(text_of({"clone", "web", "--serial", "-n", "3"}),
            "--serial needs a value: --serial FILE, and \"-n\" comes next");
  EXPECT_EQ(text_of({"--id", "x", "run", "--initrd", ""}), "--initrd needs a value: --initrd FILE");
  EXPECT_EQ(text_of({"restore", "s", ""}), "MEMORY must not be empty");
  EXPECT_EQ(text_of({"merge", "a", "b", ""}), "DIFF must not be empty");
  EXPECT_EQ(text_of({"pause", ""}), "NAME must not be empty");
  EXPECT_EQ(parse({"run", "--kernel", ""}).error().hint, "Try 'mayfly run --help'.\n");
  EXPECT_EQ(parse({"pause", ""}).error().hint, "Try 'mayfly pause --help'.\n");
}

TEST(Options, a_value_may_look_like_a_flag_where_it_is_said_to_be_one) {
  EXPECT_EQ(parsed({"run", "--kernel=--disk"}).run.kernel, "--disk");
  EXPECT_EQ(parsed({"run", "--kernel", "-disk"}).run.kernel, "-disk");
  EXPECT_EQ(parsed({"run", "--cmdline", "-- --kernel"}).run.cmdline, "-- --kernel");
  EXPECT_EQ(parsed({"run", "--cmdline=--cpus=2"}).run.cmdline, "--cpus=2");
}

TEST(Options, an_empty_command_line_is_one_however_it_is_spelled) {
  EXPECT_EQ(parsed({"run", "--cmdline="}).run.cmdline, "");
  EXPECT_EQ(parsed({"run", "--cmdline", ""}).run.cmdline, "");
  EXPECT_EQ(parsed({"run", "--cmdline=", "--cpus", "2"}).run.cpus, 2U);
  EXPECT_EQ(parsed({"run", "--cmdline=a=b"}).run.cmdline, "a=b");
}

TEST(Options, what_is_incomplete_says_what_is_missing) {
  expect_refused({}, "mayfly run");
  expect_refused({"--no-api"}, "--config-file");
  expect_refused({"--config-file", "/c"}, "--no-api");
  expect_refused({"--no-api", "--api-sock", "/s"}, "contradict");
  expect_refused({"--api-sock", "/s", "doctor"}, "subcommand");
  expect_refused({"--no-api", "--config-file", "/c", "run"}, "subcommand");
  expect_refused({"--no-api", "doctor"}, "subcommand");
  expect_refused({"--metadata", "/m", "run"}, "--metadata");
  expect_refused({"--mmds-size-limit", "9", "run"}, "--mmds-size-limit");
}

TEST(Options, the_control_api_takes_a_socket_with_a_configuration_file_or_without_one) {
  const Options alone = parsed({"--api-sock", "/s"});
  EXPECT_EQ(alone.subcommand, Subcommand::kMonitor);
  EXPECT_EQ(alone.api_socket, "/s");
  EXPECT_EQ(alone.max_body_bytes, 51200U);
  EXPECT_FALSE(alone.config_file.has_value());
  const Options both =
      parsed({"--api-sock=/s", "--config-file", "/c", "--http-api-max-payload-size", "1000"});
  EXPECT_EQ(both.config_file, "/c");
  EXPECT_EQ(both.max_body_bytes, 1000U);
  const Options metadata = parsed({"--api-sock=/s", "--metadata", "/m", "--mmds-size-limit", "7"});
  EXPECT_EQ(metadata.metadata, "/m");
  EXPECT_EQ(metadata.mmds_size_limit, 7U);
  for (const char* size : {"0", "-1", "x", "4294967296"}) {
    expect_refused({"--api-sock", "/s", "--http-api-max-payload-size", size}, "--http-api-max-payload-size");
  }
}

TEST(Options, run_serves_the_control_api_where_it_is_given_a_socket) {
  for (const Arguments& arguments :
       {Arguments{"run", "--api-sock", "/s", "--id", "x"}, Arguments{"--api-sock", "/s", "run", "--id=x"}}) {
    const Options options = parsed(arguments);
    EXPECT_EQ(options.subcommand, Subcommand::kRun);
    EXPECT_EQ(options.api_socket, "/s");
    EXPECT_EQ(options.id, "x");
  }
  EXPECT_FALSE(parsed({"run"}).api_socket.has_value());
}

TEST(Options, restore_takes_a_snapshot_and_what_the_copy_has_of_its_own) {
  const Options bare = parsed({"restore", "/s/state", "/s/mem"});
  EXPECT_EQ(bare.subcommand, Subcommand::kRestore);
  EXPECT_EQ(bare.load.state_path, "/s/state");
  EXPECT_EQ(bare.load.memory_path, "/s/mem");
  EXPECT_TRUE(bare.load.resume);
  EXPECT_FALSE(bare.load.advance_clock || bare.load.track_dirty_pages || bare.load.working_set_path ||
               bare.load.huge_pages);
  const Options full = parsed({"restore",
                               "/s/state",
                               "/s/mem",
                               "--disk",
                               "rootfs=/a=b.img:overlay=/o",
                               "--disk",
                               "disk1=/c",
                               "--tap",
                               "net1=tap7",
                               "--tap",
                               "net2=tap8",
                               "--mac",
                               "net1=06:00:00:00:00:09",
                               "--paused",
                               "--clock-realtime",
                               "--track-dirty-pages",
                               "--working-set",
                               "/w",
                               "--transparent-huge-pages",
                               "--metadata",
                               "/md",
                               "--mmds-size-limit",
                               "9",
                               "--api-sock",
                               "/sock",
                               "--id",
                               "copy"});
  ASSERT_EQ(full.load.drives.size(), 2U);
  EXPECT_EQ(full.load.drives[0].id, "rootfs");
  EXPECT_EQ(full.load.drives[0].path, "/a=b.img");
  EXPECT_EQ(full.load.drives[0].overlay->path, "/o");
  EXPECT_EQ(full.load.drives[1].path, "/c");
  EXPECT_FALSE(full.load.drives[1].overlay.has_value());
  ASSERT_EQ(full.load.networks.size(), 3U);
  EXPECT_EQ(full.load.networks[1].id, "net2");
  EXPECT_EQ(full.load.networks[1].tap, "tap8");
  EXPECT_EQ(full.load.networks[2].id, "net1");
  EXPECT_FALSE(full.load.networks[2].tap.has_value());
  EXPECT_EQ(full.load.networks[2].mac, "06:00:00:00:00:09");
  EXPECT_FALSE(full.load.resume);
  EXPECT_TRUE(full.load.advance_clock && full.load.track_dirty_pages);
  EXPECT_EQ(full.load.working_set_path, "/w");
  EXPECT_EQ(full.load.huge_pages, HugePages::kTransparent);
  EXPECT_EQ(full.metadata, "/md");
  EXPECT_EQ(full.mmds_size_limit, 9U);
  EXPECT_EQ(full.api_socket, "/sock");
  EXPECT_FALSE(full.load.record_working_set);
  EXPECT_TRUE(
      parsed({"restore", "/s", "/m", "--record-working-set", "--api-sock", "/a"}).load.record_working_set);
  expect_refused({"restore", "/s", "/m", "--record-working-set"}, "--api-sock");
  expect_refused({"restore", "/s", "/m", "--api-sock", "/a", "--record-working-set", "--working-set", "/w"},
                 "contradict");
  expect_refused({"restore", "/s/state"}, "MEMORY");
  expect_refused({"restore", "/s/state", "/s/mem", "--paused"}, "--api-sock");
  expect_refused({"restore", "/s/state", "/s/mem", "--disk", "disk1"}, "ID=IMAGE");
  expect_refused({"restore", "/s/state", "/s/mem", "--disk", "=x"}, "ID=IMAGE");
  expect_refused({"restore", "/s/state", "/s/mem", "--disk", "disk1=x:ro"}, "as the guest knows it");
  expect_refused({"restore", "/s/state", "/s/mem", "--tap", "net1="}, "ID=TAP");
  expect_refused({"restore", "/s/state", "/s/mem", "--mac", "06:00:00:00:00:09"}, "ID=MAC");
  expect_refused({"restore", "/s/state", "/s/mem", "--mac", "net1=06:00"}, "no MAC address");
  expect_refused({"restore", "/s", "/m", "--disk", "a=/x", "--disk", "b=/x", "--disk", "a=/y"},
                 "--disk names a more than once");
  expect_refused({"restore", "/s", "/m", "--tap", "a=x", "--tap", "a=x"}, "--tap names a more than once");
  expect_refused({"restore", "/s", "/m", "--mac", "a=06:00:00:00:00:09", "--mac", "a=06:00:00:00:00:08"},
                 "--mac names a more than once");
  expect_refused({"restore", "/s/state", "/s/mem", "--kernel", "k"}, "--kernel");
}

TEST(Options, subcommands_for_running_microvms_take_a_name_and_their_own_flags) {
  EXPECT_EQ(parsed({"ps"}).subcommand, Subcommand::kPs);
  EXPECT_TRUE(parsed({"ps", "--json"}).shell.json);
  EXPECT_TRUE(parsed({"ps", "--quiet"}).shell.quiet);
  EXPECT_TRUE(parsed({"ps", "--templates", "--json"}).shell.templates);
  EXPECT_EQ(parsed({"pause", "web"}).subcommand, Subcommand::kPause);
  EXPECT_EQ(parsed({"pause", "web"}).shell.name, "web");
  const Options snapshot = parsed({"snapshot", "web", "/s/state", "/s/mem", "--diff"});
  EXPECT_EQ(snapshot.subcommand, Subcommand::kSnapshot);
  EXPECT_EQ(snapshot.shell.state_path, "/s/state");
  EXPECT_EQ(snapshot.shell.memory_path, "/s/mem");
  EXPECT_TRUE(snapshot.shell.diff);
  EXPECT_FALSE(snapshot.shell.live);
  const Options working_set = parsed({"working-set", "web", "w.set"});
  EXPECT_EQ(working_set.subcommand, Subcommand::kWorkingSet);
  EXPECT_EQ(working_set.shell.name, "web");
  EXPECT_EQ(working_set.shell.working_set_path, "w.set");
  const Options merge = parsed({"merge", "base", "one", "two", "--output", "out"});
  EXPECT_EQ(merge.subcommand, Subcommand::kMerge);
  EXPECT_EQ(merge.shell.memory_path, "base");
  EXPECT_EQ(merge.shell.diff_paths, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(merge.shell.output_path, "out");
  EXPECT_EQ(parsed({"resume", "web"}).subcommand, Subcommand::kResume);
  EXPECT_EQ(parsed({"metrics", "web"}).subcommand, Subcommand::kMetrics);
  EXPECT_EQ(parsed({"config", "web"}).subcommand, Subcommand::kConfig);
  EXPECT_EQ(parsed({"completion", "fish"}).shell.shell, "fish");
  const Options stop = parsed({"stop", "--timeout", "3", "run"});
  EXPECT_EQ(stop.subcommand, Subcommand::kStop);
  EXPECT_EQ(stop.shell.name, "run");
  EXPECT_EQ(stop.shell.timeout_s, 3U);
  EXPECT_FALSE(stop.shell.now);
  EXPECT_TRUE(parsed({"stop", "web", "--now"}).shell.now);
  EXPECT_EQ(parsed({"stop", "web"}).shell.timeout_s, 10U);
  EXPECT_EQ(parsed({"run", "--id", "stop"}).id, "stop");
}

TEST(Options, subcommands_for_running_microvms_refuse_what_they_have_no_use_for) {
  expect_refused({"pause"}, "NAME");
  expect_refused({"snapshot", "web", "/s/state"}, "MEMORY");
  expect_refused({"working-set", "web"}, "FILE");
  expect_refused({"merge", "base"}, "DIFF");
  expect_refused({"stop", "a", "b"}, "b");
  expect_refused({"stop", "a", "--timeout", "soon"}, "--timeout");
  expect_refused({"stop", "a", "--timeout", "86401"}, "--timeout");
  expect_refused({"pause", "a", "--now"}, "--now");
  expect_refused({"ps", "--json", "--quiet"}, "contradict");
  expect_refused({"snapshot", "a", "s", "m", "--live", "--diff"}, "contradict");
  expect_refused({"clone", "a", "--no-api", "--paused"}, "--paused");
  expect_refused({"ps", "web"}, "web");
  expect_refused({"completion", "csh"}, "bash, zsh or fish");
  expect_refused({"--api-sock", "/s", "ps"}, "--api-sock");
  EXPECT_EQ(parse({"stop"}).error().hint, "Try 'mayfly stop --help'.\n");
}

TEST(Options, a_template_takes_a_snapshot_and_a_socket) {
  const auto options = parse({"template", "s", "m", "--api-sock", "/t", "--pool", "3", "--no-clone-api"});
  ASSERT_TRUE(options) << options.error().text;
  EXPECT_EQ(options->subcommand, Subcommand::kTemplate);
  EXPECT_EQ(options->id, "template");
  EXPECT_EQ(options->clones.state_path, "s");
  EXPECT_EQ(options->clones.memory_path, "m");
  EXPECT_EQ(options->clones.pool, 3U);
  EXPECT_TRUE(options->clones.no_api);
  EXPECT_EQ(parse({"template", "s", "m", "--api-sock", "/t", "--name", "web"})->id, "web");
  EXPECT_FALSE(parse({"template", "s", "m"}));
  EXPECT_FALSE(parse({"template", "s", "--api-sock", "/t"}));
  EXPECT_FALSE(parse({"template", "s", "m", "--api-sock", "/t", "--pool", "0"}));
  EXPECT_FALSE(parse({"template", "s", "m", "--api-sock", "/t", "--name", "a/b"}));
}

TEST(Options, clones_are_asked_of_a_template_by_their_number) {
  const auto options =
      parse({"clone", "web", "-n", "100", "--id-prefix", "w", "--no-api", "--serial", "{id}"});
  ASSERT_TRUE(options) << options.error().text;
  EXPECT_EQ(options->subcommand, Subcommand::kClone);
  EXPECT_EQ(options->clones.template_name, "web");
  EXPECT_EQ(options->clones.count, 100U);
  EXPECT_EQ(options->clones.id_prefix, "w");
  EXPECT_FALSE(options->clones.paused);
  EXPECT_TRUE(options->clones.no_api);
  EXPECT_TRUE(parsed({"clone", "web", "--paused"}).clones.paused);
  EXPECT_EQ(options->clones.serial_path, "{id}");
  EXPECT_EQ(parse({"clone", "web", "--count=2"})->clones.count, 2U);
  const Options own = parsed({"clone", "web", "--disk", "disk1=a.img:overlay={id}.o", "--tap", "net1=tap{n}",
                              "--mac", "net1=06:00:ac:{n}"});
  ASSERT_EQ(own.load.drives.size(), 1U);
  EXPECT_EQ(own.load.drives[0].id, "disk1");
  EXPECT_EQ(own.load.drives[0].path, "a.img");
  EXPECT_EQ(own.load.drives[0].overlay->path, "{id}.o");
  ASSERT_EQ(own.load.networks.size(), 2U);
  EXPECT_EQ(own.load.networks[0].tap, "tap{n}");
  EXPECT_EQ(own.load.networks[1].mac, "06:00:ac:{n}");
  expect_refused({"clone", "web", "--mac", "net1=06:00"}, "no MAC address");
  EXPECT_EQ(parse({"clone", "web", "-n", "2", "--mac", "net1=06:00:00:00:00:01"}).error().text,
            "--mac net1=06:00:00:00:00:01 is one clone's; for several (--count) it ends in \"{n}\", such as "
            "net1=06:00:ac:{n}");
  EXPECT_EQ(parsed({"clone", "web", "--mac", "net1=06:00:00:00:00:01"}).load.networks.size(), 1U);
  expect_refused({"clone", "web", "--mac", "net1=01:00:ac:{n}"},
                 "--mac: \"01:00:ac:{n}\" is not the address");
  expect_refused({"restore", "/s", "/m", "--mac", "net1=00:00:00:00:00:00"}, "not the address of a single");
  expect_refused({"run", "--net", "user", "--mac", "01:00:00:00:00:01"},
                 "--mac: \"01:00:00:00:00:01\" is not");
  expect_refused({"clone", "web", "--mac", "06:00:ac:{n}"}, "ID=MAC");
  expect_refused({"clone", "web", "--tap", "a=x", "--tap", "a=y"}, "--tap names a more than once");
  expect_refused({"restore", "/s", "/m", "--mac", "net1=06:00:ac:{n}"}, "no MAC address");
  EXPECT_FALSE(parse({"clone"}));
  EXPECT_FALSE(parse({"clone", "web", "-n", "1025"}));
  EXPECT_FALSE(parse({"clone", "web", "--api-sock", "/s"}));
}

TEST(Options, the_version_of_snapshots_is_text_for_stdout_whatever_else_is_said) {
  for (const auto& stop : {parse({"--snapshot-version"}), parse({"--snapshot-version", "--no-api"})}) {
    ASSERT_FALSE(stop.has_value());
    EXPECT_EQ(stop.error().exit_code, 0);
    EXPECT_EQ(stop.error().text, "v1.0.0\n");
  }
}

TEST(Options, a_snapshot_is_described_without_a_microvm) {
  const Options options = parsed({"--describe-snapshot", "/s/state"});
  EXPECT_EQ(options.subcommand, Subcommand::kDescribeSnapshot);
  EXPECT_EQ(options.describe_snapshot, "/s/state");
  expect_refused({"--describe-snapshot"}, "--describe-snapshot");
  expect_refused({"--describe-snapshot", "/s", "ps"}, "does not go with a subcommand");
}

TEST(Options, filters_are_those_of_the_program_or_of_a_file_or_none) {
  for (const Arguments& start : {Arguments{"run"}, Arguments{"--no-api", "--config-file", "/c"}}) {
    const auto with = [&start](Arguments more) {
      more.insert(more.begin(), start.begin(), start.end());
      return more;
    };
    EXPECT_FALSE(parsed(with({})).no_seccomp);
    EXPECT_EQ(parsed(with({})).seccomp_filter, std::nullopt);
    EXPECT_TRUE(parsed(with({"--no-seccomp"})).no_seccomp);
    EXPECT_EQ(parsed(with({"--seccomp-filter", "/f"})).seccomp_filter, "/f");
    expect_refused(with({"--seccomp-filter", "/f", "--no-seccomp"}), "contradict");
    expect_refused(with({"--no-seccomp=x"}), "--no-seccomp");
  }
}

TEST(Options, the_boot_timer_is_on_where_it_is_asked_for) {
  EXPECT_FALSE(parsed({"--no-api", "--config-file", "/c"}).boot_timer);
  EXPECT_TRUE(parsed({"--no-api", "--config-file", "/c", "--boot-timer"}).boot_timer);
  expect_refused({"--boot-timer=x", "--no-api", "--config-file", "/c"}, "--boot-timer");
  expect_refused({"run", "--boot-timer"}, "--boot-timer");
}

TEST(Options, a_refusal_points_to_the_help_of_the_subcommand) {
  EXPECT_EQ(parse({"--frobnicate"}).error().hint, "Try 'mayfly --help'.\n");
  EXPECT_EQ(parse({"run", "--frobnicate"}).error().hint, "Try 'mayfly run --help'.\n");
}

TEST(Options, help_and_version_are_text_for_stdout_with_0) {
  for (const Arguments& arguments : {Arguments{"--help"}, Arguments{"-h"}, Arguments{"run", "--help"},
                                     Arguments{"doctor", "--help"}, Arguments{"--version"}}) {
    const auto options = parse(arguments);
    ASSERT_FALSE(options.has_value()) << joined(arguments);
    EXPECT_EQ(options.error().exit_code, 0) << joined(arguments);
    EXPECT_TRUE(options.error().text.ends_with("\n")) << joined(arguments);
  }
  EXPECT_EQ(parse({"--version"}).error().text, version_text() + "\n");
}

TEST(Options, help_names_every_flag_and_every_exit_status_and_nothing_that_is_not_built) {
  const std::string top = parse({"--help"}).error().text;
  for (const char* word : {"--api-sock",
                           "--http-api-max-payload-size",
                           "--config-file",
                           "--no-api",
                           "--id",
                           "--metrics-path",
                           "--boot-trace",
                           "--boot-timer",
                           "--no-seccomp",
                           "--seccomp-filter",
                           "--log-path",
                           "--level",
                           "--module",
                           "--show-level",
                           "--show-log-origin",
                           "--start-time-us",
                           "run",
                           "doctor",
                           "  0  ",
                           "  1  ",
                           "  152 ",
                           "  153 ",
                           "148, 149, 150, 154, 156, 157",
                           "  151  never"}) {
    EXPECT_NE(top.find(word), std::string::npos) << word;
  }
  const std::string run = parse({"run", "--help"}).error().text;
  for (const char* word : {"--kernel", "--initrd", "--cpus", "--memory", "--cmdline", "--huge-pages",
                           "--track-dirty-pages", "--boot-protocol", "--id", "--metrics-path", "--boot-trace",
                           "--log-path", "Ctrl-A x", "$MAYFLY_KERNEL", "console=ttyS0 reboot=k panic=1"}) {
    EXPECT_NE(run.find(word), std::string::npos) << word;
  }
  EXPECT_NE(parse({"doctor", "--help"}).error().text.find("Exit status"), std::string::npos);
}

}  // namespace
}  // namespace mayfly
