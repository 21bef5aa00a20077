#include "mayfly/suggestion.h"

#include <gtest/gtest.h>

#include <array>
#include <string>

namespace mayfly {
namespace {

constexpr std::array<std::string_view, 8> kNames = {"run",      "ps",       "pause",  "resume",
                                                    "--kernel", "--memory", "--cpus", "--config-file"};

TEST(Suggestion, a_slip_of_the_hand_is_seen_as_what_was_meant) {
  for (const auto& [word, meant] : {std::pair("rnu", "run"),
                                    {"urn", "run"},
                                    {"sp", "ps"},
                                    {"pase", "pause"},
                                    {"puase", "pause"},
                                    {"resumee", "resume"},
                                    {"--kernal", "--kernel"},
                                    {"-kernel", "--kernel"},
                                    {"--memroy", "--memory"},
                                    {"--mem", "--memory"},
                                    {"--config", "--config-file"},
                                    {"--cofnig-fil", "--config-file"}}) {
    EXPECT_EQ(nearest(word, kNames), meant) << word;
  }
}

TEST(Suggestion, what_is_like_nothing_is_left_at_that) {
  for (const std::string& word :
       {std::string("frobnicate"), std::string("x"), std::string(), std::string("--"), std::string("--c"),
        std::string("first"), std::string("pauses-all"), std::string(100'000, 'r')}) {
    EXPECT_EQ(nearest(word, kNames), "") << word.substr(0, 20);
  }
}

TEST(Suggestion, an_option_of_another_command_is_shown_its_place) {
  const ProgramText program = describe_program();
  EXPECT_EQ(suggestion("--kernel", "", program), " here; it goes with 'mayfly run'");
  EXPECT_EQ(suggestion("--metadata=x", "run", program),
            " here; it goes with 'mayfly' without a subcommand, 'mayfly restore'");
  EXPECT_EQ(
      suggestion("--level", "ps", program),
      " here; it goes with 'mayfly' without a subcommand, 'mayfly run', 'mayfly restore', 'mayfly template'");
}

TEST(Suggestion, subcommands_and_options_are_looked_for_where_they_may_stand) {
  const ProgramText program = describe_program();
  EXPECT_EQ(suggestion("docter", "", program), "; did you mean doctor?");
  EXPECT_EQ(suggestion("docter", "run", program), "");
  EXPECT_EQ(suggestion("--api-socket=x", "", program), "; did you mean --api-sock?");
  EXPECT_EQ(suggestion("--kernal", "run", program), "; did you mean --kernel?");
  EXPECT_EQ(suggestion("--kernal", "stop", program), "");
}

}  // namespace
}  // namespace mayfly
