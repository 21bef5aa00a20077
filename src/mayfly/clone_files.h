// Files that were made for a clone, so that they can be removed where it is not born.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mayfly {

// A file that was not there before, by what tells it from others of its name.
struct NewOutput {
  std::uint64_t index = 0;  // of the clone's outputs
  dev_t device = 0;
  ino_t inode = 0;
};
using NewOutputBytes = std::array<char, sizeof(NewOutput)>;

// Makes an empty file of mode 0600. Nothing where there is one already, or none can be made.
std::optional<NewOutput> make_output(std::uint64_t index, const std::string& path);

struct MadeFile {
  std::string path;
  NewOutput file;
};

// Removes those that are still there; another file of the same name stays. False where one is left.
bool remove_files(const std::vector<MadeFile>& files);

}  // namespace mayfly
