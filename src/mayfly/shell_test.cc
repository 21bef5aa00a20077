#include "mayfly/shell.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

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
