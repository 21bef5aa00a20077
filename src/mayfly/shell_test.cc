#include "mayfly/shell.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace mayfly {
namespace {

MonitorProcess process(pid_t pid, const std::string& id) {
  MonitorProcess made;
  made.pid = pid;
  made.id = id;
  return made;
}

MicroVmRow answering() {
  MicroVmRow row{.process = process(7, "web"), .state = "Running", .problem = {}};
  row.process.socket = "/s";
  row.process.vcpus = 2;
  row.process.memory_mib = 512;
  return row;
}

MicroVmRow hostile() {
  MicroVmRow row{.process = process(123456, "a"), .state = "\x1b[2J\n", .problem = {}};
  row.process.socket = "/tmp/\n\xff";
  return row;
}

// What `mayfly clone` says where no template runs.
std::string clone_refused(const std::string& name) {
  const testing::TempDir proc;
  Options options;
  options.subcommand = Subcommand::kClone;
  options.clones.template_name = name;
  const auto born =
      run_shell_command(options, {.proc = std::filesystem::path(proc.file("")).string(), .user = 0}, {});
  EXPECT_FALSE(born.has_value());
  return born ? "" : born.error().message;
}

// As a process leaves it that was killed.
void leave_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // SAFETY: the socket calls take every family's address by this type.
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
}

TEST(CloneCommand, a_socket_at_which_no_template_listens_is_said_to_be_that_and_how_one_is_started) {
  const testing::TempDir folder;
  const std::string left = folder.file("left.sock");
  leave_socket(left);
  EXPECT_EQ(clone_refused(left),
            "template " + left +
                ": no template listens there, the socket is left over by one that has ended; remove it and "
                "start one by 'mayfly template STATE MEMORY --api-sock PATH'");
  const std::string none = folder.file("none.sock");
  EXPECT_EQ(clone_refused(none), "template " + none +
                                     ": there is no such socket; a template is started by 'mayfly template "
                                     "STATE MEMORY --api-sock PATH'");
  const std::string file = folder.file("file");
  std::ofstream(file) << "text";
  EXPECT_EQ(clone_refused(file), "template " + file + ": it is no socket");
}

TEST(CloneCommand, a_socket_that_is_named_without_its_folder_is_told_how_to_be_named) {
  const testing::TempDir folder;
  leave_socket(folder.file("tw.sock"));
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.file(""));
  const std::string said = clone_refused("tw.sock");
  const std::string other = clone_refused("web");
  std::filesystem::current_path(before);
  EXPECT_EQ(said,
            "there is no template \"tw.sock\" of this user; none is running; for the socket of this name in "
            "this folder write ./tw.sock");
  EXPECT_EQ(other, "there is no template \"web\" of this user; none is running");
}

TEST(TableOf, has_a_line_for_each_under_headings_and_in_columns) {
  MicroVmRow silent{.process = process(8, "db"), .state = {}, .problem = "connect"};
  silent.process.socket = "/d";
  EXPECT_EQ(table_of({answering(), silent, {.process = process(9, "x"), .state = {}, .problem = {}}}),
            "NAME  PID  STATE    VCPUS  MEMORY  SOCKET\n"
            "web   7    Running  2      512M    /s\n"
            "db    8    ?        -      -       /d\n"
            "x     9    -        -      -       -\n");
  EXPECT_EQ(table_of({}), "NAME  PID  STATE  VCPUS  MEMORY  SOCKET\n");
}

TEST(TableOf, what_is_not_printable_is_escaped) {
  const std::string table = table_of({hostile()});
  EXPECT_NE(table.find("\\x1b[2J\\n"), std::string::npos) << table;
  EXPECT_NE(table.find("/tmp/\\n\\xff\n"), std::string::npos) << table;
  EXPECT_EQ(table.find('\x1b'), std::string::npos);
}

TEST(JsonOf, is_an_array_with_null_for_what_is_not_known) {
  EXPECT_EQ(json_of({}), "[]\n");
  EXPECT_EQ(
      json_of({answering(), {.process = process(9, "x"), .state = {}, .problem = {}}}),
      "[\n"
      "  {\"name\": \"web\", \"pid\": 7, \"state\": \"Running\", \"vcpu_count\": 2, \"mem_size_mib\": 512, "
      "\"socket\": \"/s\", \"problem\": null},\n"
      "  {\"name\": \"x\", \"pid\": 9, \"state\": null, \"vcpu_count\": null, \"mem_size_mib\": null, "
      "\"socket\": null, \"problem\": null}\n"
      "]\n");
  const std::string text = json_of({hostile()});
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_EQ(text.find('\xff'), std::string::npos);
}

TEST(JsonOf, has_nothing_that_a_terminal_takes_for_more_than_letters) {
  MonitorProcess turned = process(7, "web");
  turned.socket =
      "/tmp/\xe2\x80\xae"
      "kcos.\xc2\x9b";  // right to left; an 8-bit CSI
  const std::string text = json_of({{.process = turned, .state = {}, .problem = {}}});
  EXPECT_NE(text.find(R"("/tmp/\u202ekcos.\u009b")"), std::string::npos) << text;
}

TEST(NamesOf, gives_the_number_of_the_process_where_a_name_is_shared) {
  EXPECT_EQ(names_of({process(7, "web"), process(8, "db"), process(9, "web")}), "7\ndb\n9\n");
  EXPECT_EQ(names_of({process(7, "web"), process(8, "7"), process(9, "9")}), "web\n8\n9\n");
  EXPECT_EQ(names_of({}), "");
}

TEST(Choose, takes_the_id_or_the_process_but_none_that_is_the_id_of_one_and_the_process_of_another) {
  const std::vector<MonitorProcess> all = {process(7, "web"), process(8, "db"), process(9, "7"),
                                           process(10, "10")};
  EXPECT_EQ(choose(all, "web").value().pid, 7);
  EXPECT_EQ(choose(all, "8").value().id, "db");
  EXPECT_EQ(choose(all, "10").value().pid, 10);
  EXPECT_EQ(choose(all, "9").value().id, "7");
  const auto either = choose(all, "7");
  ASSERT_FALSE(either);
  EXPECT_NE(either.error().message.find("web (process 7), 7 (process 9)"), std::string::npos)
      << either.error().message;
}

TEST(Choose, an_unknown_or_ambiguous_name_is_an_error_that_lists_the_candidates) {
  const std::vector<MonitorProcess> all = {process(7, "web"), process(8, "db"), process(9, "web")};
  const auto several = choose(all, "web");
  ASSERT_FALSE(several);
  EXPECT_EQ(several.error().exit_code, ExitCode::kError);
  EXPECT_NE(several.error().message.find("web (process 7), web (process 9)"), std::string::npos)
      << several.error().message;
  EXPECT_EQ(choose(all, "9").value().pid, 9);
  MonitorProcess one = process(7, "web");
  one.is_template = true;
  one.socket = "/run/a.sock";
  MonitorProcess other = one;
  other.pid = 8;
  other.socket = "/run/b.sock";
  const auto templates = choose({one, other}, "web");
  ASSERT_FALSE(templates);
  EXPECT_NE(templates.error().message.find(
                "web (template, process 7) at /run/a.sock, web (template, process 8) at /run/b.sock"),
            std::string::npos)
      << templates.error().message;
  const auto none = choose(all, "mail");
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("db (process 8)"), std::string::npos) << none.error().message;
  EXPECT_NE(choose({}, "mail").error().message.find("none is running"), std::string::npos);
}

}  // namespace
}  // namespace mayfly
