#include "mayfly/process_title.h"

#include <linux/prctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/text.h"

namespace mayfly {
namespace {

constexpr std::size_t kMaxStat = 4096;
constexpr std::size_t kFields = 52;  // of /proc/self/stat (proc(5)), counted from 1

using Fields = std::array<std::uint64_t, kFields + 1>;

// Negative ones, of which none is asked for, are 0.
std::optional<Fields> read_stat() {
  const auto stat = read_file("/proc/self/stat", "process", kMaxStat);
  const std::size_t end = stat ? stat->rfind(") ") : std::string::npos;
  if (end == std::string::npos) {
    return std::nullopt;
  }
  Fields fields{};
  std::string_view rest = std::string_view(*stat).substr(end + 2);
  for (std::size_t field = 3; field <= kFields && !rest.empty(); ++field) {
    const std::string_view word = rest.substr(0, rest.find_first_of(" \n"));
    fields.at(field) = parse_integer<std::uint64_t>(word).value_or(0);
    rest.remove_prefix(std::min(rest.size(), word.size() + 1));
  }
  return fields;
}

// Where the process was started with its arguments. Addresses of this process's own that the kernel tells.
struct Layout {
  static std::optional<Layout> read() {
    const auto fields = read_stat();
    if (!fields) {
      return std::nullopt;
    }
    Layout layout;
    layout.map.start_code = (*fields)[26];
    layout.map.end_code = (*fields)[27];
    layout.map.start_stack = (*fields)[28];
    layout.map.start_data = (*fields)[45];
    layout.map.end_data = (*fields)[46];
    layout.map.start_brk = (*fields)[47];
    layout.map.arg_start = (*fields)[48];
    layout.map.arg_end = (*fields)[49];
    layout.map.env_start = (*fields)[50];
    layout.map.env_end = (*fields)[51];
    layout.map.exe_fd = static_cast<std::uint32_t>(-1);  // stays
    return layout;
  }
  prctl_mm_map map{};
};

// As it was when somebody asked first.
const std::optional<Layout>& first_layout() {
  static const std::optional<Layout> layout = Layout::read();
  return layout;
}

bool point_to(const Layout& layout, const std::string& text) {
  prctl_mm_map map = layout.map;
  // SAFETY: addresses as numbers, as the kernel takes them; it reads nothing there by this call.
  map.brk = reinterpret_cast<std::uint64_t>(::sbrk(0));
  map.arg_start = reinterpret_cast<std::uint64_t>(text.data());  // SAFETY: as above
  map.arg_end = map.arg_start + text.size();
  return ::prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0) == 0;
}

bool write_over(const Layout& layout, const std::string& text) {
  const std::uint64_t size = layout.map.arg_end - layout.map.arg_start;
  if (layout.map.arg_start == 0 || text.size() > size) {
    return false;
  }
  // SAFETY: the strings that the process was started with, which are writable, and which nobody reads any
  // more.
  auto* const place = reinterpret_cast<char*>(layout.map.arg_start);
  std::fill(std::copy(text.begin(), text.end(), place), place + size, '\0');
  return true;
}

}  // namespace

void prepare_process_arguments() {
  first_layout();
}

bool set_process_arguments(const std::vector<std::string>& arguments) {
  const std::optional<Layout>& layout = first_layout();
  static std::string shown;  // for as long as anybody may look
  static bool is_written_over = false;
  if (!layout) {
    return false;
  }
  std::string text;
  for (const std::string& argument : arguments) {
    text.append(argument).push_back('\0');
  }
  const std::string former = std::exchange(shown, std::move(text));
  if (point_to(*layout, shown)) {
    return true;
  }
  const bool written = (former.empty() || is_written_over) && write_over(*layout, shown);
  is_written_over = is_written_over || written;
  shown = written ? shown : former;
  return written;
}

}  // namespace mayfly
