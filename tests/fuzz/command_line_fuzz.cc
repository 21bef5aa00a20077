// Command lines: the input is the user's text, a newline, and a parameter to add. What the kernel would make
// of the result must be what it would make of the text, and the parameter, and nothing else.
#include "boot/command_line.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"

namespace mayfly {
namespace {

struct Parsed {
  std::vector<std::string> parameters;
  std::string for_init;  // what stands behind the lone "--", from it on
  bool open_quotation = false;
};

// Splits as Linux's parse_args() does (kernel/params.c).
Parsed parse(std::string_view text) {
  Parsed parsed;
  for (;;) {
    const std::size_t start = text.find_first_not_of(' ');
    if (start == std::string_view::npos) {
      return parsed;
    }
    text.remove_prefix(start);
    std::size_t end = 0;
    bool in_quote = false;
    for (; end < text.size() && (in_quote || text[end] != ' '); ++end) {
      if (text[end] == '"') {
        in_quote = !in_quote;
      }
    }
    std::string parameter(text.substr(0, end));
    if (parameter[0] == '"') {
      parameter.erase(0, 1);
      if (!parameter.empty() && parameter.back() == '"') {
        parameter.pop_back();
      }
    }
    if (parameter == "--") {
      parsed.for_init = text;
      return parsed;
    }
    parsed.open_quotation = in_quote;
    parsed.parameters.push_back(parameter);
    text.remove_prefix(end);
  }
}

void fuzz(std::string_view text, std::string_view parameter) {
  auto line = CommandLine::make(text);
  if (!line) {
    return;
  }
  MAYFLY_CHECK(line->text() == text && line->size() == text.size() + 1, "a command line is taken as it is");
  const Parsed before = parse(text);
  const Parsed added = parse(parameter);
  const auto done = line->append(parameter);
  if (!done) {
    MAYFLY_CHECK(line->text() == text, "an error changes nothing");
    return;
  }
  MAYFLY_CHECK(!before.open_quotation, "nothing is added into a quotation");
  if (added.open_quotation || !added.for_init.empty()) {
    return;  // not something that we would add
  }
  std::vector<std::string> expected = before.parameters;
  expected.insert(expected.end(), added.parameters.begin(), added.parameters.end());
  const Parsed after = parse(line->text());
  MAYFLY_CHECK(after.parameters == expected, "the kernel sees the parameter behind the user's");
  MAYFLY_CHECK(after.for_init == before.for_init, "init sees what the user wrote");
}

}  // namespace
}  // namespace mayfly

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string input(data, data + size);
  const std::size_t split = std::min(input.find('\n'), input.size());
  mayfly::fuzz(std::string_view(input).substr(0, split),
               std::string_view(input).substr(std::min(split + 1, input.size())));
  return 0;
}
