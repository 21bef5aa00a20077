#include "mayfly/man_page.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace mayfly {
namespace {

// One line of text: nothing in it is read as roff, and its hyphens and quotes can be copied (groff_char(7)).
std::string roff(std::string_view text) {
  std::string line = text.starts_with('.') ? "\\&" : "";
  for (const char character : text) {
    switch (character) {
      case '\\':
        line += "\\e";
        break;
      case '-':
        line += "\\-";
        break;
      case '\'':
        line += "\\(aq";
        break;
      case '"':
        line += "\\(dq";
        break;
      case '`':
        line += "\\(ga";
        break;
      case '^':
        line += "\\(ha";
        break;
      case '~':
        line += "\\(ti";
        break;
      default:
        line += character;
    }
  }
  return line;
}

std::string bold(std::string_view text) {
  return "\\fB" + roff(text) + "\\fR";
}

std::string italic(std::string_view text) {
  return "\\fI" + roff(text) + "\\fR";
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    lines.emplace_back(line);
    text.remove_prefix(std::min(text.size(), line.size() + 1));
  }
  return lines;
}

// "  152  the microVM cannot ..." as ("152", "the microVM cannot ..."): an entry of a list.
std::optional<std::pair<std::string, std::string>> entry_of(const std::string& line) {
  const std::size_t gap = line.find("  ", 2);
  const std::size_t text = gap == std::string::npos ? gap : line.find_first_not_of(' ', gap);
  if (!line.starts_with("  ") || line.starts_with("   ") || text == std::string::npos) {
    return std::nullopt;
  }
  return std::pair(line.substr(2, gap - 2), line.substr(text));
}

bool is_heading(const std::string& line) {
  return line == "Examples:" || line == "Exit status:";
}

std::string upper(std::string text) {
  std::ranges::transform(text, text.begin(), [](char character) {
    return character >= 'a' && character <= 'z' ? static_cast<char>(character - 'a' + 'A') : character;
  });
  return text;
}

// Paragraphs; entries of a list; lines that begin with two blanks and are none stay as they are.
std::string body_of(std::string_view text) {
  std::string page;
  bool starts_paragraph = true;
  bool in_list = false;
  for (const std::string& line : lines_of(text)) {
    if (line.empty()) {
      starts_paragraph = true;
    } else if (is_heading(line)) {
      page.append(".SH ").append(upper(line.substr(0, line.size() - 1))).append("\n");
      starts_paragraph = false;
      in_list = false;
    } else if (const auto entry = entry_of(line)) {
      page.append(".TP\n").append(bold(entry->first)).append("\n").append(roff(entry->second)).append("\n");
      in_list = true;
      starts_paragraph = false;
    } else if (in_list && line.starts_with("   ")) {
      page.append(roff(line.substr(line.find_first_not_of(' ')))).append("\n");
    } else if (in_list && line.starts_with("  ")) {
      page.append(".TP\n").append(bold(line.substr(2))).append("\n");
    } else if (line.starts_with("  ")) {
      page.append(".PP\n.nf\n.RS 4\n").append(roff(line.substr(2))).append("\n.RE\n.fi\n");
      starts_paragraph = true;
    } else {
      page.append(starts_paragraph || in_list ? ".PP\n" : "").append(roff(line)).append("\n");
      starts_paragraph = false;
      in_list = false;
    }
  }
  return page;
}

std::string entry(const OptionText& option) {
  std::string text = ".TP\n";
  text.append(option.short_name.empty() ? "" : bold(option.short_name) + ", ").append(bold(option.name));
  if (!option.value.empty() && option.name.starts_with('-')) {
    text.append(" ").append(italic(option.value));
  }
  return text.append("\n").append(roff(option.help)).append(".\n");
}

// By their groups, in the order in which these come first.
std::string entries(const CommandText& command) {
  std::string text;
  for (const OptionText& argument : command.arguments) {
    text.append(entry(argument));
  }
  std::vector<std::string> groups;
  for (const OptionText& option : command.options) {
    if (std::ranges::find(groups, option.group) == groups.end()) {
      groups.push_back(option.group);
    }
  }
  for (const std::string& group : groups) {
    text.append(group == groups.front() ? "" : ".PP\n" + roff(group) + ":\n");
    for (const OptionText& option : command.options) {
      text.append(option.group == group ? entry(option) : "");
    }
  }
  return text;
}

// What belongs into a manual page and not into --help.
struct ManEntry {
  const char* name;
  const char* text;
};
constexpr std::array kEnvironment = {
    ManEntry{"MAYFLY_KERNEL", "The kernel that mayfly run boots where --kernel names none."},
    ManEntry{"XDG_DATA_HOME", "Its mayfly/kernel is the next choice; ~/.local/share if unset."},
    ManEntry{"HOME", "Where that is, if XDG_DATA_HOME is unset."},
    ManEntry{"PATH", "Where passt is looked for, which serves network interfaces of the kind user."},
};
constexpr std::array kFiles = {
    ManEntry{"~/.local/share/mayfly/kernel, /usr/share/mayfly/kernel",
             "The kernel that mayfly run boots where neither --kernel nor MAYFLY_KERNEL names one."},
    ManEntry{"/dev/kvm",
             "Needed to read and to write; mayfly doctor says what to do where it is not permitted."},
    ManEntry{"/dev/net/tun", "The same for a tap, which has to be there: see ip-tuntap(8)."},
    ManEntry{"/proc", "Where mayfly ps and the subcommands for a NAME find the microVMs of a user."},
};
constexpr const char* kSeeAlso =
    ".BR passt (1),\n.BR curl (1),\n.BR ip\\-tuntap (8)\n.PP\n"
    "The folder docs of the source has a page for each task: api.md for the control API by curl, shell.md "
    "for microVMs by name, devices.md for drives and network interfaces, snapshots.md for snapshots and "
    "restores, templates.md and cloning.md for clones, metrics.md for log, metrics and events; "
    "resources/openapi.yaml describes every call.\n";

std::string section(const char* heading, std::span<const ManEntry> list) {
  std::string text = std::string(".SH ") + heading + "\n";
  for (const ManEntry& each : list) {
    text.append(".TP\n").append(bold(each.name)).append("\n").append(roff(each.text)).append("\n");
  }
  return text;
}

std::string synopsis(const CommandText& command) {
  std::string line = bold("mayfly " + command.name) + " [" + italic("OPTIONS") + "]";
  for (const OptionText& argument : command.arguments) {
    line.append(" ").append(italic(argument.name));
  }
  return line + "\n";
}

}  // namespace

std::string man_page(const ProgramText& text, std::string_view version) {
  std::string page =
      ".\\\" Made from the program's own description of its command line.\n.TH MAYFLY 1 \"\" \"Mayfly " +
      roff(version) + "\" \"User Commands\"\n";
  page.append(".SH NAME\nmayfly \\- run microVMs, and manage those that run\n.SH SYNOPSIS\n");
  page.append(bold("mayfly")).append(" [").append(italic("OPTIONS")).append("]\n");
  for (const CommandText& command : text.subcommands) {
    page.append(".br\n").append(synopsis(command));
  }
  page.append(".SH DESCRIPTION\n").append(body_of(text.program.summary));
  page.append(".SH OPTIONS\n").append(entries(text.program)).append(".SH SUBCOMMANDS\n");
  for (const CommandText& command : text.subcommands) {
    page.append(".SS ")
        .append(roff("mayfly " + command.name))
        .append("\n")
        .append(roff(command.summary))
        .append(".\n");
    page.append(entries(command)).append(body_of(command.footer));
  }
  page.append(body_of(text.program.footer));
  page.append(section("ENVIRONMENT", kEnvironment)).append(section("FILES", kFiles));
  return page.append(".SH SEE ALSO\n").append(kSeeAlso);
}

}  // namespace mayfly
