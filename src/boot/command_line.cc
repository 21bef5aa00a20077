#include "boot/command_line.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>

#include "boot/arch.h"
#include "boot/image_file.h"

namespace mayfly {
namespace {

namespace layout = arch::layout;

bool is_printable(char c) {
  return c >= ' ' && c <= '~';
}

// Where the kernel's own parameters end: at a parameter that is "--" after the kernel has stripped its quotes
// (lib/cmdline.c, next_arg(): blanks separate parameters except between quotation marks), else at the end.
// Nothing where the text ends within a quotation.
std::optional<std::size_t> find_insertion_point(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (text[at] == ' ') {
      ++at;
      continue;
    }
    bool quoted = false;
    std::size_t end = at;
    while (end < text.size() && (quoted || text[end] != ' ')) {
      quoted = quoted != (text[end] == '"');
      ++end;
    }
    std::string_view parameter = text.substr(at, end - at);
    if (parameter.starts_with('"')) {
      parameter.remove_prefix(1);
      if (parameter.ends_with('"')) {
        parameter.remove_suffix(1);
      }
    }
    if (parameter == "--") {
      return at;
    }
    if (quoted) {
      return std::nullopt;
    }
    at = end;
  }
  return text.size();
}

}  // namespace

Result<CommandLine> CommandLine::make(std::string_view text) {
  const auto bad = std::find_if_not(text.begin(), text.end(), is_printable);
  if (bad != text.end()) {
    return fail(ErrorCode::kInvalidArgument, "command line: byte " + hex(static_cast<unsigned char>(*bad)) +
                                                 " at position " + std::to_string(bad - text.begin()) +
                                                 " is not a printable ASCII character");
  }
  if (text.size() >= layout::kCommandLineMax) {
    return fail(ErrorCode::kInvalidArgument, "command line: " + std::to_string(text.size()) +
                                                 " bytes are more than the " +
                                                 std::to_string(layout::kCommandLineMax - 1) + " allowed");
  }
  return CommandLine(text);
}

Result<void> CommandLine::append(std::string_view parameter) {
  const auto point = find_insertion_point(text_);
  if (!point) {
    return fail(ErrorCode::kInvalidArgument,
                "command line: a quotation mark is not closed, so that nothing can be added");
  }
  std::string joined = text_.substr(0, *point);
  if (!joined.empty() && joined.back() != ' ') {
    joined.push_back(' ');
  }
  joined.append(parameter);
  if (*point < text_.size()) {
    joined.append(" ").append(text_, *point);
  }
  MAYFLY_TRY_ASSIGN(*this, make(joined));
  return {};
}

Result<void> CommandLine::write(GuestMemory& memory, GuestAddress address, std::uint64_t kernel_max) const {
  if (size() > kernel_max) {
    return fail(ErrorCode::kInvalidArgument, "command line: " + std::to_string(text_.size()) +
                                                 " bytes are more than the " +
                                                 std::to_string(kernel_max - 1) + " that this kernel takes");
  }
  const auto written = memory.write(address, std::as_bytes(std::span(text_.c_str(), size())));
  if (!written) {
    return tl::make_unexpected(written.error().to_error().within("write the command line"));
  }
  return {};
}

}  // namespace mayfly
