#include "options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <vector>

namespace mayfly::jail {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

tl::expected<Options, Stop> parse(std::initializer_list<const char*> arguments) {
  const std::vector<const char*> words(arguments);
  return parse_options(words);
}

// With what is needed always.
tl::expected<Options, Stop> parse_more(const std::vector<std::string>& more) {
  std::vector<const char*> words = {"--id",  "vm1",  "--exec-file", "/usr/bin/mayfly",
                                    "--uid", "1000", "--gid",       "100"};
  for (const std::string& word : more) {
    words.push_back(word.c_str());
  }
  return parse_options(words);
}

std::string refusal(const tl::expected<Options, Stop>& parsed) {
  EXPECT_FALSE(parsed.has_value());
  if (parsed) {
    return "";
  }
  EXPECT_TRUE(parsed.error().refused);
  return parsed.error().text;
}

TEST(Options, the_least_that_is_needed_has_the_dialects_defaults) {
  const auto options = parse_more({});
  ASSERT_TRUE(options);
  EXPECT_EQ(options->action, Action::kJail);
  EXPECT_EQ(options->id, "vm1");
  EXPECT_EQ(options->exec_name, "mayfly");
  EXPECT_EQ(options->uid, 1000U);
  EXPECT_EQ(options->gid, 100U);
  EXPECT_EQ(options->chroot_base, "/srv/jailer");
  EXPECT_EQ(options->no_file, 2048U);
  EXPECT_FALSE(options->fsize);
  EXPECT_EQ(options->cgroup_version, CgroupVersion::k1);
  EXPECT_EQ(options->cgroup_parent(), "mayfly");
}

TEST(Options, every_flag_of_the_dialect_is_taken) {
  const auto options =
      parse_more({"--chroot-base-dir", "//srv///jails/", "--netns=/run/netns/a", "--daemonize",
                  "--new-pid-ns", "--cgroup", "cpu.shares=10", "--cgroup=cpuset.cpus=0-1,3",
                  "--resource-limit", "fsize=250000000", "--resource-limit=no-file=0x400", "--cgroup-version",
                  "2", "--parent-cgroup", "all//vms/", "--", "--config-file", "--id"});
  ASSERT_TRUE(options) << options.error().text;
  EXPECT_EQ(options->chroot_base, "/srv/jails");
  EXPECT_EQ(options->netns, "/run/netns/a");
  EXPECT_TRUE(options->daemonize);
  EXPECT_TRUE(options->new_pid_ns);
  ASSERT_EQ(options->cgroups.size(), 2U);
  EXPECT_EQ(options->cgroups[1].file, "cpuset.cpus");
  EXPECT_EQ(options->cgroups[1].value, "0-1,3");
  EXPECT_EQ(options->cgroups[1].controller(), "cpuset");
  EXPECT_EQ(options->fsize, 250'000'000U);
  EXPECT_EQ(options->no_file, 1024U);
  EXPECT_EQ(options->cgroup_version, CgroupVersion::k2);
  EXPECT_EQ(options->cgroup_parent(), "all/vms");
  EXPECT_THAT(options->monitor_arguments, ElementsAre("--config-file", "--id"));
}

TEST(Options, help_and_version_are_told_and_not_refused) {
  for (const char* const word : {"--help", "-h", "--version"}) {
    const auto parsed = parse({"--id", "vm1", word});
    ASSERT_FALSE(parsed) << word;
    EXPECT_FALSE(parsed.error().refused);
    EXPECT_THAT(parsed.error().text, HasSubstr("jailer"));
  }
}

TEST(Options, cleanup_needs_no_user) {
  const auto options = parse({"--cleanup", "--id", "vm1", "--exec-file", "mayfly"});
  ASSERT_TRUE(options);
  EXPECT_EQ(options->action, Action::kCleanup);
}

TEST(Options, what_is_needed_and_missing_is_named) {
  EXPECT_EQ(refusal(parse({})), "--id is missing");
  EXPECT_EQ(refusal(parse({"--id", "a"})), "--exec-file is missing");
  EXPECT_EQ(refusal(parse({"--id", "a", "--exec-file", "m"})), "--uid is missing");
  EXPECT_EQ(refusal(parse({"--id", "a", "--exec-file", "m", "--uid", "1"})), "--gid is missing");
}

struct Refused {
  std::vector<std::string> arguments;
  const char* flag;
  const char* rule;
};

TEST(Options, every_refusal_names_flag_value_and_rule) {
  const std::vector<Refused> all = {
      {{"--netns", ""}, "--netns \"\"", "path of a network namespace"},
      {{"--chroot-base-dir", "srv"}, "--chroot-base-dir \"srv\"", "absolute"},
      {{"--chroot-base-dir", "/srv/../etc"}, "--chroot-base-dir \"/srv/../etc\"", "without '.' and '..'"},
      {{"--chroot-base-dir", "/srv/./a"}, "--chroot-base-dir \"/srv/./a\"", "without '.' and '..'"},
      {{"--chroot-base-dir", "/"}, "--chroot-base-dir \"/\"", "root directory"},
      {{"--chroot-base-dir", "/a\nb"}, "--chroot-base-dir \"/a\nb\"", "printable"},
      {{"--cgroup", "cpu.shares"}, "--cgroup \"cpu.shares\"", "FILE=VALUE"},
      {{"--cgroup", "cpu.shares="}, "--cgroup \"cpu.shares=\"", "FILE=VALUE"},
      {{"--cgroup", "tasks=1"}, "--cgroup \"tasks=1\"", "CONTROLLER.NAME"},
      {{"--cgroup", ".shares=1"}, "--cgroup \".shares=1\"", "CONTROLLER.NAME"},
      {{"--cgroup", "cpu.=1"}, "--cgroup \"cpu.=1\"", "CONTROLLER.NAME"},
      {{"--cgroup", "cpu/../memory.max=1"}, "--cgroup \"cpu/../memory.max=1\"", "CONTROLLER.NAME"},
      {{"--cgroup", "cgroup.procs=1"}, "--cgroup \"cgroup.procs=1\"", "no controller's"},
      {{"--cgroup", "cpu.shares=1\n2"}, "--cgroup \"cpu.shares=1\n2\"", "printable"},
      {{"--cgroup-version", "3"}, "--cgroup-version \"3\"", "must be 1 or 2"},
      {{"--parent-cgroup", "/a"}, "--parent-cgroup \"/a\"", "relative"},
      {{"--parent-cgroup", "a/../b"}, "--parent-cgroup \"a/../b\"", "without '.' and '..'"},
      {{"--parent-cgroup", ""}, "--parent-cgroup \"\"", "below a hierarchy's root"},
      {{"--resource-limit", "cpu=1"}, "--resource-limit \"cpu=1\"", "fsize=BYTES or no-file=COUNT"},
      {{"--resource-limit", "fsize"}, "--resource-limit \"fsize\"", "fsize=BYTES or no-file=COUNT"},
      {{"--resource-limit", "fsize=-1"}, "--resource-limit \"fsize=-1\"", "number"},
      {{"--resource-limit", "no-file=18446744073709551615"}, "--resource-limit", "below 2^64 - 1"},
      {{"--resource-limit", "no-file=0"}, "--resource-limit \"no-file=0\"", "need 64 open files"},
      {{"--resource-limit", "no-file=63"}, "--resource-limit \"no-file=63\"", "need 64 open files"},
  };
  for (const Refused& one : all) {
    EXPECT_THAT(refusal(parse_more(one.arguments)), AllOf(HasSubstr(one.flag), HasSubstr(one.rule)));
  }
}

TEST(Options, ids_are_those_of_the_monitor) {
  for (const char* const id : {"", "a/b", "..", "a b", "a_b", "a.b", "\xc3\xa4"}) {
    EXPECT_THAT(refusal(parse({"--id", id})), HasSubstr("must be 1 to 64 letters, digits and '-'"));
  }
  EXPECT_THAT(refusal(parse({"--id", std::string(65, 'a').c_str()})), HasSubstr("must be 1 to 64"));
}

TEST(Options, a_refusal_of_a_megabyte_is_short) {
  const std::string id(1U << 20U, 'x');
  const std::string text = refusal(parse({"--id", id.c_str()}));
  EXPECT_LT(text.size(), 200U);
  EXPECT_THAT(text, HasSubstr("(1048576 characters)"));
}

TEST(Options, users_are_numbers_that_mean_somebody) {
  for (const char* const user :
       {"", "root", "-1", "4294967295", "4294967296", "1 ", "+1", "0x10", "010", "00"}) {
    EXPECT_THAT(refusal(parse({"--uid", user})), HasSubstr("0 to 4294967294"));
    EXPECT_THAT(refusal(parse({"--gid", user})), HasSubstr("0 to 4294967294"));
  }
}

TEST(Options, root_is_no_user_of_a_jails) {
  EXPECT_THAT(refusal(parse({"--id", "a", "--exec-file", "m", "--uid", "0", "--gid", "1"})),
              HasSubstr("--uid 0: must not be root"));
  EXPECT_TRUE(parse({"--id", "a", "--exec-file", "m", "--uid", "0", "--gid", "0", "--rootless"}));
  EXPECT_TRUE(parse({"--id", "a", "--exec-file", "m", "--cleanup"}));
}

TEST(Options, a_flag_is_not_swallowed_as_a_value) {
  EXPECT_THAT(refusal(parse({"--parent-cgroup", "--new-pid-ns"})),
              HasSubstr("--parent-cgroup needs a value, and \"--new-pid-ns\" looks like a flag; "
                        "--parent-cgroup=PATH takes any"));
  EXPECT_THAT(refusal(parse({"--netns", "--"})), HasSubstr("needs a value"));
  EXPECT_THAT(refusal(parse({"--parent-cgroup=--x"})), HasSubstr("--id is missing"));
}

TEST(Options, the_monitors_name_is_a_folders_and_no_part_of_the_jail) {
  for (const char* const file : {"", "/", "a/", "..", "/usr/bin/.", "a b", "a&b"}) {
    EXPECT_THAT(refusal(parse({"--exec-file", file})), HasSubstr("names folders"));
  }
  for (const char* const file : {"/bin/dev", "run"}) {
    EXPECT_THAT(refusal(parse({"--exec-file", file})), HasSubstr("a folder of that name"));
  }
}

TEST(Options, repetition_is_refused_but_where_it_means_more) {
  EXPECT_EQ(refusal(parse_more({"--id", "b"})), "--id is given more than once");
  EXPECT_THAT(refusal(parse_more({"--resource-limit", "fsize=1", "--resource-limit", "fsize=2"})),
              HasSubstr("this limit is given more than once"));
}

TEST(Options, unknown_words_and_missing_values_are_named) {
  EXPECT_THAT(refusal(parse_more({"--seccomp"})), HasSubstr("there is no argument \"--seccomp\""));
  EXPECT_THAT(refusal(parse_more({"stray"})), HasSubstr("stands behind --"));
  EXPECT_EQ(refusal(parse_more({"--netns"})), "--netns needs a value: --netns FILE");
  EXPECT_EQ(refusal(parse_more({"--daemonize=yes"})), "--daemonize takes no value");
}

TEST(Options, what_contradicts_is_refused) {
  EXPECT_THAT(refusal(parse_more({"--cleanup", "--daemonize"})), HasSubstr("--daemonize do not go together"));
  EXPECT_THAT(refusal(parse_more({"--cleanup", "--dry-run"})), HasSubstr("--dry-run do not go together"));
  EXPECT_THAT(refusal(parse_more({"--cleanup", "--", "x"})), HasSubstr("behind --"));
  EXPECT_THAT(refusal(parse_more({"--rootless", "--netns", "/n"})), HasSubstr("takes root"));
}

}  // namespace
}  // namespace mayfly::jail
