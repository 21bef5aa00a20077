#include "mayfly/processes.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "support/temp_dir.h"

namespace mayfly {
namespace {

constexpr uid_t kUser = 1000;

struct FakeProcess {
  std::string name = "mayfly";
  std::vector<std::string> arguments = {"mayfly", "run"};
  uid_t user = kUser;
  pid_t parent = 900;
  std::string exe = "/usr/bin/mayfly";
  std::string cwd = "/home/u";
  std::string root = "/";
};

// A folder in the place of /proc.
class FakeProc {
 public:
  void add(pid_t pid, const FakeProcess& process) const {
    const std::string folder = dir_.file(std::to_string(pid));
    std::filesystem::create_directory(folder);
    std::ofstream(folder + "/status") << "Name:\t" << process.name << "\nState:\tS (sleeping)\nPPid:\t"
                                      << process.parent << "\nUid:\t" << process.user << "\t0\t0\t0\n";
    std::ofstream(folder + "/stat") << pid << " (a) b (c) S 1";
    std::ofstream stat(folder + "/stat", std::ios::app);
    for (int field = 5; field < 22; ++field) {
      stat << " 7";
    }
    stat << " " << 100 + pid << " 9 9\n";
    std::ofstream command_line(folder + "/cmdline", std::ios::binary);
    for (const std::string& argument : process.arguments) {
      command_line << argument << '\0';
    }
    std::filesystem::create_symlink(process.exe, folder + "/exe");
    std::filesystem::create_symlink(process.cwd, folder + "/cwd");
    std::filesystem::create_symlink(process.root, folder + "/root");
  }
  std::string path(const std::string& name) const { return dir_.file(name); }
  std::vector<MonitorProcess> find() const {
    const auto found = find_monitors({.proc = dir_.file("."), .user = kUser});
    EXPECT_TRUE(found) << found.error().message();
    return found.value_or(std::vector<MonitorProcess>());
  }

 private:
  testing::TempDir dir_;
};

TEST(FindMonitors, tells_what_a_command_line_tells) {
  const FakeProc proc;
  proc.add(30,
           {.arguments = {"mayfly", "run", "--id", "web", "--cpus=2", "--memory", "1G", "--api-sock", "/s"}});
  proc.add(4, {.arguments = {"/opt/mayfly", "--no-api", "--config-file", "vm.json"}});
  const auto found = proc.find();
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].pid, 4);
  EXPECT_EQ(found[0].start_time, 104U);
  EXPECT_EQ(found[0].id, "anonymous-instance");
  EXPECT_FALSE(found[0].socket.has_value());
  EXPECT_FALSE(found[0].vcpus.has_value());
  EXPECT_FALSE(found[0].memory_mib.has_value());
  EXPECT_EQ(found[1].pid, 30);
  EXPECT_EQ(found[1].id, "web");
  EXPECT_EQ(found[1].socket, "/s");
  EXPECT_EQ(found[1].vcpus, 2U);
  EXPECT_EQ(found[1].memory_mib, 1024U);
}

TEST(FindMonitors, a_socket_is_named_and_reached_as_the_process_sees_it) {
  struct Case {
    FakeProcess process;
    std::string socket;
    std::string link;
  };
  const FakeProc proc;
  const auto with = [](const std::string& path) {
    return FakeProcess{.arguments = {"mayfly", "--api-sock", path}};
  };
  FakeProcess jailed = with("/run/vm.sock");
  jailed.root = "/srv/jail/root";
  FakeProcess at_root = with("vm.sock");
  at_root.cwd = "/";
  const std::vector<Case> cases = {{with("/run/vm.sock"), "/run/vm.sock", "/root/run/vm.sock"},
                                   {with("a/vm.sock"), "/home/u/a/vm.sock", "/cwd/a/vm.sock"},
                                   {at_root, "/vm.sock", "/cwd/vm.sock"},
                                   {jailed, "/srv/jail/root/run/vm.sock", "/root/run/vm.sock"}};
  for (std::size_t index = 0; index < cases.size(); ++index) {
    proc.add(static_cast<pid_t>(index + 1), cases[index].process);
  }
  const auto found = proc.find();
  ASSERT_EQ(found.size(), cases.size());
  for (std::size_t index = 0; index < cases.size(); ++index) {
    EXPECT_EQ(found[index].socket, cases[index].socket);
    EXPECT_EQ(found[index].socket_to_connect,
              proc.path("./") + std::to_string(index + 1) + cases[index].link);
  }
}

TEST(FindMonitors, a_program_is_known_by_its_file_or_by_its_name) {
  const FakeProc proc;
  proc.add(1, {.name = "other", .exe = "/x/mayfly"});
  proc.add(2, {.name = "other", .exe = "/x/mayfly (deleted)"});
  proc.add(3, {.name = "mayfly", .exe = "/x/vmm"});
  proc.add(4, {.name = "mayfly2", .exe = "/x/mayfly2"});
  proc.add(5, {.name = "notmayfly", .exe = "/mayfly/sh"});
  const auto found = proc.find();
  ASSERT_EQ(found.size(), 3U);
  EXPECT_EQ(found[2].pid, 3);
}

TEST(FindMonitors, other_users_other_subcommands_and_copies_are_left_out) {
  const FakeProc proc;
  proc.add(1, {.user = kUser + 1});
  proc.add(2, {.arguments = {"mayfly", "ps"}});
  proc.add(3, {.arguments = {"mayfly", "doctor"}});
  proc.add(4, {.arguments = {"mayfly", "run", "--help"}});
  proc.add(5, {.arguments = {"mayfly"}});
  proc.add(6, {.arguments = {}});
  proc.add(7, {.arguments = {"mayfly", "stop", "run"}});
  proc.add(10, {.arguments = {"mayfly", "run"}});
  proc.add(11, {.arguments = {"mayfly", "run"}, .parent = 10});
  const auto found = proc.find();
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].pid, 10);
}

TEST(FindMonitors, hostile_and_half_dead_processes_do_no_harm) {
  const FakeProc proc;
  proc.add(1, {.arguments = {"mayfly", "run", "--id", "a\x1b[2J\nb"}});
  proc.add(2, {.arguments = {"mayfly", "run", std::string(100'000, 'x')}});
  proc.add(3, {.arguments = {"mayfly", "run", "--api-sock", "\x1b]0;x\x07\n"}});
  std::filesystem::create_directory(proc.path("4"));
  std::ofstream(proc.path("5")) << "no folder";
  std::filesystem::create_directory(proc.path("sys"));
  std::filesystem::create_directory(proc.path("-6"));
  proc.add(7, {});
  std::ofstream(proc.path("7/stat")) << "7 (mayfly";
  proc.add(8, {});
  std::ofstream(proc.path("8/status")) << "Uid:";
  const auto found = proc.find();
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].socket, "/home/u/\x1b]0;x\x07\n");
}

TEST(FindMonitors, a_clone_is_known_by_the_arguments_that_it_shows_and_its_template_is_one) {
  const FakeProc proc;
  const std::vector<std::string> source = {"mayfly", "template", "/s",         "/m",
                                           "--name", "web",      "--api-sock", "/t"};
  proc.add(30, {.arguments = source});
  proc.add(31, {.arguments = source, .parent = 30});  // waits in the pool
  proc.add(32, {.arguments = {"mayfly", "[clone of web]", "--id", "web-1", "--cpus", "2", "--memory", "64M",
                              "--api-sock", "/run/web-1.sock"},
                .parent = 30});
  // Written over longer ones.
  proc.add(33, {.arguments = {"mayfly", "[clone of web]", "--id", "web-2", "", ""}, .parent = 1});
  const auto found = proc.find();
  ASSERT_EQ(found.size(), 3U);
  EXPECT_EQ(found[0].pid, 30);
  EXPECT_TRUE(found[0].is_template);
  EXPECT_EQ(found[0].id, "web");
  EXPECT_EQ(found[0].socket, "/t");
  EXPECT_FALSE(found[1].is_template);
  EXPECT_EQ(found[1].id, "web-1");
  EXPECT_EQ(found[1].socket, "/run/web-1.sock");
  EXPECT_EQ(found[1].vcpus, 2U);
  EXPECT_EQ(found[1].memory_mib, 64U);
  EXPECT_EQ(found[2].id, "web-2");
  EXPECT_FALSE(found[2].socket);
}

TEST(FindMonitors, a_folder_that_is_not_there_is_an_error) {
  EXPECT_FALSE(find_monitors({.proc = "/nonexistent", .user = kUser}));
}

TEST(OpenProcess, gives_nothing_for_a_number_that_is_anothers_by_now) {
  const FakeProc proc;
  proc.add(::getpid(), {});
  MonitorProcess self = proc.find().at(0);
  const ProcessView view{.proc = proc.path("."), .user = kUser};
  const auto opened = open_process(view, self);
  ASSERT_TRUE(opened) << opened.error().message();
  EXPECT_TRUE(opened->has_value());
  ++self.start_time;
  EXPECT_FALSE(open_process(view, self).value().has_value());
}

}  // namespace
}  // namespace mayfly
