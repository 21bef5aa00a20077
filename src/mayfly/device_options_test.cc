#include "mayfly/device_options.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <variant>

namespace mayfly {
namespace {

TEST(DriveOption, a_path_alone_is_a_drive_to_be_written) {
  const auto drive = parse_drive_option("/srv/root.ext4");
  ASSERT_TRUE(drive.has_value()) << drive.error().message();
  EXPECT_EQ(drive->path, "/srv/root.ext4");
  EXPECT_FALSE(drive->read_only);
  EXPECT_FALSE(drive->overlay.has_value());
}

TEST(DriveOption, words_behind_the_path_change_the_drive_and_other_colons_belong_to_the_path) {
  EXPECT_TRUE(parse_drive_option("a:b:ro")->read_only);
  EXPECT_EQ(parse_drive_option("a:b:ro")->path, "a:b");
  EXPECT_EQ(parse_drive_option("a:ro:b")->path, "a:ro:b");
  const auto in_memory = parse_drive_option("a:overlay");
  ASSERT_TRUE(in_memory->overlay.has_value());
  EXPECT_FALSE(in_memory->overlay->path.has_value());
  EXPECT_EQ(parse_drive_option("a:overlay=b/c")->overlay->path, "b/c");
}

TEST(DriveOption, what_makes_no_sense_is_refused_with_what_was_given) {
  for (const char* text : {"", ":ro", "a:ro:overlay", "a:overlay="}) {
    const auto drive = parse_drive_option(text);
    ASSERT_FALSE(drive.has_value()) << text;
    EXPECT_NE(drive.error().message().find(text), std::string::npos);
  }
}

std::string word_refused(const std::string& path, const std::set<std::string>& files,
                         DriveWords words = DriveWords::kAll) {
  const auto checked =
      check_drive_words(path, words, [&files](const std::string& file) { return files.contains(file); });
  return checked ? "" : checked.error().message();
}

TEST(DriveWord, one_that_is_none_is_refused_with_what_was_likely_meant) {
  constexpr const char* kRest =
      ", and behind an image only :ro, :overlay and :overlay=FILE mean something, not ";
  EXPECT_EQ(word_refused("img:readonyl", {"img"}),
            std::string("there is no \"img:readonyl\"") + kRest + "\":readonyl\"; did you mean :ro?");
  EXPECT_EQ(word_refused("img:overlya=o", {"img"}), std::string("there is no \"img:overlya=o\"") + kRest +
                                                        "\":overlya=o\"; did you mean :overlay=o?");
  EXPECT_EQ(word_refused("img:foo", {"img"}), std::string("there is no \"img:foo\"") + kRest + "\":foo\"");
  EXPECT_EQ(word_refused("img:rw", {"img"}), std::string("there is no \"img:rw\"") + kRest + "\":rw\"");
  EXPECT_TRUE(word_refused("a:b:foo", {"a:b"}).ends_with("not \":foo\""));
  EXPECT_TRUE(word_refused("img:ro:foo", {"img"}).ends_with("not \":foo\""));
  EXPECT_TRUE(word_refused("none:overlays", {}).ends_with("did you mean :overlay?"));
  EXPECT_EQ(word_refused("img:r", {"img"}, DriveWords::kOverlayOnly),
            "there is no \"img:r\", and behind an image only :overlay and :overlay=FILE mean something, not "
            "\":r\"");
  EXPECT_TRUE(word_refused("{id}.img:overlya={id}.o", {}, DriveWords::kOverlayOnly)
                  .ends_with("did you mean :overlay={id}.o?"));
}

TEST(DriveWord, a_path_with_colons_is_one_where_it_is_there_or_nothing_speaks_for_a_word) {
  EXPECT_EQ(word_refused("img:readonyl", {"img", "img:readonyl"}), "");
  EXPECT_EQ(word_refused("img", {}), "");
  EXPECT_EQ(word_refused("/dev/disk/by-path/pci-0000:00:1f.2", {"/dev"}), "");
  EXPECT_EQ(word_refused("disk:{n}", {"disk"}, DriveWords::kOverlayOnly), "");
}

TEST(NetworkOption, a_tap_has_a_name_and_may_have_more) {
  const auto network = parse_network_option("tap=tap0,mac=06:00:ac:10:00:02,mtu=1400,queues=2");
  ASSERT_TRUE(network.has_value()) << network.error().message();
  EXPECT_EQ(std::get<TapConfig>(network->backend).name, "tap0");
  EXPECT_EQ(network->mac->to_string(), "06:00:ac:10:00:02");
  EXPECT_EQ(network->mtu, 1400U);
  EXPECT_EQ(network->queue_pairs, 2U);
}

TEST(NetworkOption, a_user_network_forwards_as_many_ports_as_are_named) {
  const auto network = parse_network_option("user,forward=8080:80,forward=53:53:udp,host-loopback");
  ASSERT_TRUE(network.has_value()) << network.error().message();
  const auto& user = std::get<UserNetConfig>(network->backend);
  ASSERT_EQ(user.forwards.size(), 2U);
  EXPECT_EQ(user.forwards[0].guest_port, 80U);
  EXPECT_EQ(user.forwards[1].protocol, PortForward::Protocol::kUdp);
  EXPECT_TRUE(user.host_loopback);
}

TEST(NetworkOption, what_is_not_understood_is_refused) {
  for (const char* text : {"", "tap", "tap=", "bridge", "user,", "user,speed=9", "tap=t,forward=1:2",
                           "user,mac=1", "user,mtu=big", "user,forward=", "tap=t,queues=9"}) {
    EXPECT_FALSE(parse_network_option(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace mayfly
