#include "api/event_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>

namespace mayfly::api {
namespace {

using Kind = MicroVmEvent::Kind;
using nlohmann::json;

json parse(const MicroVmEvent& event, std::size_t max_bytes = 1024) {
  const std::string text = event_json(event, "vm-7", max_bytes);
  EXPECT_LE(text.size(), max_bytes);
  return json::parse(text, nullptr, false);
}

TEST(EventJson, an_event_has_its_name_the_microvms_id_and_the_time) {
  EXPECT_EQ(parse({.kind = Kind::kRunning, .time_us = 5}),
            json({{"event", "running"}, {"id", "vm-7"}, {"time_us", 5}}));
}

TEST(EventJson, a_device_error_names_the_device_and_what_is_wrong) {
  const json data =
      parse({.kind = Kind::kDeviceError, .time_us = 5, .detail = "bad \"chain\"", .device = "drive root"});
  EXPECT_EQ(data["device"], "drive root");
  EXPECT_EQ(data["detail"], "bad \"chain\"");
}

TEST(EventJson, an_end_has_its_outcome_and_the_exit_code_of_the_process) {
  const json good =
      parse({.kind = Kind::kEnded, .time_us = 5, .outcome = Outcome{OutcomeKind::kGuestPowerOff, "S5"}});
  EXPECT_EQ(good["outcome"], "guest-power-off");
  EXPECT_EQ(good["exit_code"], 0);
  EXPECT_EQ(good["detail"], "S5");
  const json bad =
      parse({.kind = Kind::kEnded, .time_us = 5, .outcome = Outcome{OutcomeKind::kTripleFault, ""}});
  EXPECT_EQ(bad["outcome"], "triple-fault");
  EXPECT_EQ(bad["exit_code"], 1);
  EXPECT_FALSE(bad.contains("detail"));
}

TEST(EventJson, a_detail_of_any_length_and_of_any_bytes_is_cut_to_what_an_event_may_have) {
  for (const char byte : {'x', '\x01', '\xff', '"'}) {
    const json data =
        parse({.kind = Kind::kStartFailed, .time_us = 5, .detail = std::string(5000, byte)}, 1024);
    EXPECT_FALSE(data.is_discarded());
    EXPECT_FALSE(data["detail"].get<std::string>().empty());
  }
}

TEST(EventJson, names_are_distinct) {
  std::set<std::string> names;
  for (int kind = 0; kind <= static_cast<int>(Kind::kEnded); ++kind) {
    names.insert(event_name(static_cast<Kind>(kind)));
  }
  EXPECT_EQ(names.size(), 8U);
}

}  // namespace
}  // namespace mayfly::api
