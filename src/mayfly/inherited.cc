#include "mayfly/inherited.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/text.h"
#include "base/unique_fd.h"

namespace mayfly {

std::vector<int> named_descriptors(std::span<const char* const> arguments) {
  constexpr std::array<std::string_view, 2> kFolders = {"/dev/fd/", "/proc/self/fd/"};
  std::vector<int> named = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO};
  for (const std::string_view argument : arguments) {
    for (const std::string_view folder : kFolders) {
      for (std::size_t at = argument.find(folder); at != std::string_view::npos;
           at = argument.find(folder, at)) {
        at += folder.size();
        const std::size_t end = std::min(argument.find_first_not_of("0123456789", at), argument.size());
        if (const auto number = parse_integer<int>(argument.substr(at, end - at))) {
          named.push_back(*number);
        }
      }
    }
  }
  std::ranges::sort(named);
  named.erase(std::unique(named.begin(), named.end()), named.end());
  return named;
}

Result<void> close_inherited(std::span<const char* const> arguments) {
  const std::vector<int> kept = named_descriptors(arguments);
  for (const int fd : kept) {
    if (fd > STDERR_FILENO) {
      ::fcntl(fd, F_SETFD, FD_CLOEXEC);  // one that is not open is found when it is used
    }
  }
  return close_all_but(kept);
}

}  // namespace mayfly
