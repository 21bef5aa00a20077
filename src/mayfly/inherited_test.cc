#include "mayfly/inherited.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace mayfly {
namespace {

using ::testing::ElementsAre;

TEST(NamedDescriptors, those_of_the_arguments_are_known_wherever_they_stand) {
  const std::vector<const char*> arguments = {"run",        "--kernel",
                                              "/dev/fd/63", "--initrd=/proc/self/fd/7",
                                              "--drive",    "path=/dev/fd/12,overlay=/dev/fd/4,ro",
                                              "/dev/fd/7"};
  EXPECT_THAT(named_descriptors(arguments), ElementsAre(0, 1, 2, 4, 7, 12, 63));
}

TEST(NamedDescriptors, what_is_no_number_names_none) {
  const std::vector<const char*> arguments = {"/dev/fd/",     "/dev/fd/x",  "/dev/fd/99999999999999",
                                              "/proc/7/fd/7", "/dev/fd/-1", ""};
  EXPECT_THAT(named_descriptors(arguments), ElementsAre(0, 1, 2));
}

}  // namespace
}  // namespace mayfly
