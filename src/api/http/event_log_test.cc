#include "api/http/event_log.h"

#include <gtest/gtest.h>

#include <string>

namespace mayfly::api {
namespace {

TEST(EventLog, an_event_has_its_id_name_and_data_and_ends_with_an_empty_line) {
  EventLog log(100, 4);
  EXPECT_EQ(log.add("running", R"({"pid": 7})"), EventLog::Added::kFirst);
  EXPECT_EQ(log.add("paused", ""), EventLog::Added::kBehindOthers);
  EXPECT_EQ(log.add("said", "two\nlines"), EventLog::Added::kBehindOthers);
  const auto events = log.take_pending();
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0].text, "id: 1\nevent: running\ndata: {\"pid\": 7}\n\n");
  EXPECT_EQ(events[1].text, "id: 2\nevent: paused\ndata: \n\n");
  EXPECT_EQ(events[2].text, "id: 3\nevent: said\ndata: two\ndata: lines\n\n");
  EXPECT_TRUE(log.take_pending().empty());
  EXPECT_EQ(log.add("later", ""), EventLog::Added::kFirst);
}

TEST(EventLog, a_name_or_data_that_would_break_the_stream_is_refused) {
  EventLog log(5, 4);
  for (const std::string& name : {std::string(), std::string("Upper"), std::string("a b"),
                                  std::string("a\nid: 9"), std::string(EventLog::kMaxName + 1, 'x')}) {
    EXPECT_EQ(log.add(name, "x"), EventLog::Added::kRefused) << name;
  }
  EXPECT_EQ(log.add("x", "123456"), EventLog::Added::kRefused);
  EXPECT_EQ(log.add("x", "a\rb"), EventLog::Added::kRefused);
  EXPECT_EQ(log.add("x", std::string("a\0b", 3)), EventLog::Added::kRefused);
  EXPECT_EQ(log.add("x", "12345"), EventLog::Added::kFirst);
  EXPECT_EQ(log.take_pending().at(0).id, 1U);  // what is refused takes no id
}

TEST(EventLog, the_last_events_are_kept_and_told_from_an_id_on) {
  EventLog log(10, 2);
  for (const char* const name : {"a", "b", "c"}) {
    log.add(name, "");
  }
  EXPECT_EQ(log.after(0), "");  // not taken yet
  log.take_pending();
  EXPECT_EQ(log.after(0), "id: 2\nevent: b\ndata: \n\nid: 3\nevent: c\ndata: \n\n");
  EXPECT_EQ(log.after(2), "id: 3\nevent: c\ndata: \n\n");
  EXPECT_EQ(log.after(3), "");
}

TEST(EventLog, where_nobody_takes_them_the_oldest_are_lost) {
  EventLog log(10, 2);
  for (std::size_t i = 0; i < EventLog::kMaxPending + 3; ++i) {
    log.add("x", "");
  }
  const auto events = log.take_pending();
  ASSERT_EQ(events.size(), EventLog::kMaxPending);
  EXPECT_EQ(events.front().id, 4U);
}

}  // namespace
}  // namespace mayfly::api
