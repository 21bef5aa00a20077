#include "mayfly/suggestion.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace mayfly {
namespace {

constexpr std::size_t kMaxWord = 64;  // longer ones are no slips
constexpr std::size_t kMinBeginning = 3;

std::string_view without_dashes(std::string_view word) {
  word.remove_prefix(std::min(word.find_first_not_of('-'), word.size()));
  return word;
}

// How many letters have to be changed, added, left out, or swapped with their neighbour.
std::size_t slips_between(std::string_view one, std::string_view other) {
  std::vector<std::size_t> before_last;
  std::vector<std::size_t> last;
  std::vector<std::size_t> row(other.size() + 1);
  for (std::size_t j = 0; j < row.size(); ++j) {
    row[j] = j;
  }
  for (std::size_t i = 1; i <= one.size(); ++i) {
    before_last = std::exchange(last, row);
    row[0] = i;
    for (std::size_t j = 1; j <= other.size(); ++j) {
      const bool same = one[i - 1] == other[j - 1];
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
  }
  return row[other.size()];
}

bool has_option(const CommandText& command, std::string_view name) {
  return std::ranges::any_of(command.options,
                             [name](const OptionText& option) { return option.name == name; });
}

}  // namespace

std::string_view nearest(std::string_view word, std::span<const std::string_view> names) {
  std::string_view found;
  std::size_t fewest = 0;
  const std::string_view letters = without_dashes(word);
  for (const std::string_view name : names) {
    const std::string_view whole = without_dashes(name);
    const bool begins = letters.size() >= kMinBeginning && whole.starts_with(letters);
    const std::size_t allowed = std::max<std::size_t>(1, std::min<std::size_t>(2, whole.size() / 3));
    const std::size_t slips = begins ? 1 : word.size() > kMaxWord ? kMaxWord : slips_between(word, name);
    if (slips <= allowed && (found.empty() || slips < fewest)) {
      found = name;
      fewest = slips;
    }
  }
  return found;
}

std::string suggestion(std::string_view word, std::string_view command, const ProgramText& program) {
  word = word.substr(0, word.find('='));
  const CommandText* here = &program.program;
  std::string elsewhere;
  const auto note = [&elsewhere](const std::string& place) {
    elsewhere.append(elsewhere.empty() ? "" : ", ").append(place);
  };
  if (has_option(program.program, word)) {
    note("'mayfly' without a subcommand");
  }
  std::vector<std::string_view> names;
  for (const CommandText& each : program.subcommands) {
    if (each.name == command) {
      here = &each;
    } else if (has_option(each, word)) {
      note("'mayfly " + each.name + "'");
    }
    if (command.empty()) {
      names.emplace_back(each.name);
    }
  }
  if (!elsewhere.empty()) {
    return " here; it goes with " + elsewhere;
  }
  for (const OptionText& option : here->options) {
    names.emplace_back(option.name);
  }
  const std::string_view meant = nearest(word, names);
  return meant.empty() ? "" : "; did you mean " + std::string(meant) + "?";
}

}  // namespace mayfly
