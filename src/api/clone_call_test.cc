#include "api/clone_call.h"

#include <gtest/gtest.h>

namespace mayfly::api {
namespace {

TEST(CloneRequest, an_empty_object_is_one_clone_that_runs) {
  const auto request = parse_clone_request("{}");
  ASSERT_TRUE(request) << request.error().message();
  EXPECT_EQ(request->count, 1U);
  EXPECT_TRUE(request->api);
  EXPECT_TRUE(request->load.resume);
  EXPECT_FALSE(request->id);
}

TEST(CloneRequest, what_cannot_be_is_refused_by_its_field) {
  const auto refusal = [](std::string_view text) {
    const auto request = parse_clone_request(text);
    return request ? std::string("taken") : request.error().message();
  };
  EXPECT_NE(refusal(R"({"count": 0})").find("\"count\""), std::string::npos);
  EXPECT_NE(refusal(R"({"count": 1025})").find("\"count\""), std::string::npos);
  EXPECT_NE(refusal(R"({"id": "a/b"})").find("letters, digits and '-'"), std::string::npos);
  EXPECT_NE(refusal(R"({"id_prefix": ""})").find("\"id_prefix\""), std::string::npos);
  EXPECT_NE(refusal(R"({"id": "a", "count": 2})").find("is one clone's"), std::string::npos);
  EXPECT_NE(refusal(R"({"api": false, "api_sock": "/a"})").find("contradicts"), std::string::npos);
  EXPECT_NE(refusal(R"({"snapshot_path": "/s"})").find("snapshot_path"), std::string::npos);
  EXPECT_NE(refusal(R"({"drive_overrides": [{"drive_id": "a"}]})").find("is needed"), std::string::npos);
  const auto with_mac = [&refusal](const std::string& mac, const char* count) {
    return refusal(R"({"count": )" + std::string(count) +
                   R"(, "network_overrides": [{"iface_id": "a", "guest_mac": ")" + mac + R"("}]})");
  };
  EXPECT_NE(with_mac("06:00", "1").find("\"guest_mac\""), std::string::npos);
  EXPECT_NE(with_mac("06:00:00:00:00:01", "2").find("guest_mac is one interface's"), std::string::npos);
  EXPECT_EQ(with_mac("06:00:00:00:00:01", "1"), "taken");
  EXPECT_EQ(with_mac("06:00:00:00:{n}", "2"), "taken");
  EXPECT_NE(refusal(R"({"network_overrides": [{"iface_id": "a"}]})").find("or guest_mac is needed"),
            std::string::npos);
  const auto twice = [&refusal](const std::string& key, const std::string& one, const std::string& other) {
    return refusal("{\"" + key + "\": [{" + one + "}, {" + other + "}]}");
  };
  EXPECT_NE(twice("drive_overrides", R"("drive_id": "a", "overlay": "/o")",
                  R"("drive_id": "a", "path_on_host": "/p")")
                .find("\"drive_overrides\": names the drive \"a\" more than once"),
            std::string::npos);
  const std::string tap = R"("iface_id": "a", "host_dev_name": "t{n}")";
  const std::string mac = R"("iface_id": "a", "guest_mac": "06:00:00:00:00:01")";
  EXPECT_NE(twice("network_overrides", tap, tap)
                .find("gives a host_dev_name to the interface \"a\" more than once"),
            std::string::npos);
  EXPECT_NE(twice("network_overrides", mac, mac).find("a guest_mac to the interface \"a\" more than once"),
            std::string::npos);
  EXPECT_EQ(twice("network_overrides", tap, mac), "taken");
  EXPECT_NE(refusal("[]").find("object"), std::string::npos);
  EXPECT_NE(refusal("").find("body"), std::string::npos);
}

TEST(CloneOrder, names_stand_for_the_clones_own) {
  const auto request = parse_clone_request(R"({
      "count": 3, "id_prefix": "web", "serial_out_path": "/l/{id}.log", "metadata": {"n": "{id}"},
      "network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap{n}"},
                            {"iface_id": "eth1", "guest_mac": "06:00:AC:10:{n}"}],
      "drive_overrides": [{"drive_id": "root", "path_on_host": "/d/{id}{n}", "overlay": "/o/{n}{n}"},
                          {"drive_id": "data", "overlay": "memory"}]})");
  ASSERT_TRUE(request) << request.error().message();
  const auto order = clone_order(*request, "web-7", 7, "/run/t/");
  ASSERT_TRUE(order) << order.error().message();
  const auto told = parse_clone_request(*order);
  ASSERT_TRUE(told) << told.error().message();
  EXPECT_EQ(told->id, "web-7");
  EXPECT_EQ(told->count, 1U);
  EXPECT_EQ(told->api_socket, "/run/t/web-7.sock");
  EXPECT_EQ(told->serial_path, "/l/web-7.log");
  EXPECT_EQ(told->load.metadata, R"({"n":"{id}"})");
  ASSERT_EQ(told->load.networks.size(), 2U);
  EXPECT_EQ(told->load.networks[0].tap, "tap7");
  EXPECT_FALSE(told->load.networks[0].mac);
  EXPECT_FALSE(told->load.networks[1].tap);
  EXPECT_EQ(told->load.networks[1].mac, "06:00:ac:10:00:07");
  ASSERT_EQ(told->load.drives.size(), 2U);
  EXPECT_EQ(told->load.drives[0].path, "/d/web-77");
  EXPECT_EQ(told->load.drives[0].overlay->path, "/o/77");
  EXPECT_FALSE(told->load.drives[1].overlay->path);
  EXPECT_FALSE(told->load.drives[1].path);
}

TEST(CloneOrder, a_clone_without_an_api_has_no_socket) {
  const auto request = parse_clone_request(R"({"api": false})");
  ASSERT_TRUE(request);
  const auto order = clone_order(*request, "a-1", 1, "/run/");
  ASSERT_TRUE(order);
  const auto told = parse_clone_request(*order);
  ASSERT_TRUE(told) << told.error().message();
  EXPECT_FALSE(told->api_socket);
}

TEST(CloneOrder, a_clone_that_waits_paused_needs_an_api) {
  const auto paused = parse_clone_request(R"({"resume_vm": false})");
  ASSERT_TRUE(paused);
  EXPECT_FALSE(paused->load.resume);
  const auto for_ever = parse_clone_request(R"({"api": false, "resume_vm": false})");
  ASSERT_FALSE(for_ever);
  EXPECT_NE(for_ever.error().message().find("resume_vm"), std::string::npos);
}

TEST(CloneOrder, an_id_too_long_is_refused) {
  EXPECT_FALSE(clone_order({}, std::string(65, 'a'), 1, "/run/"));
}

TEST(CloneAnswers, are_json) {
  EXPECT_EQ(clones_answer({{.id = "a", .pid = 5, .socket = "/s"}, {.id = "b", .pid = 6}}),
            R"({"clones":[{"api_sock":"/s","id":"a","pid":5},{"api_sock":null,"id":"b","pid":6}]})");
  EXPECT_EQ(fault_answer("no \"x\""), R"({"fault_message":"no \"x\""})");
}

}  // namespace
}  // namespace mayfly::api
