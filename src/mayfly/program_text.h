// The command line described: the one source of --help, of the shells' completion and of the manual page.
#pragma once

#include <string>
#include <vector>

namespace mayfly {

struct OptionText {
  std::string name;   // "--kernel", or "NAME" of an argument without a flag
  std::string value;  // "FILE", "a|b" for a choice; empty: takes none
  std::string help;
  std::string group;
  bool repeatable = false;
  std::string short_name{};  // "-h"; empty: has none
};

struct CommandText {
  std::string name;     // "run"; of the program itself "mayfly"
  std::string summary;  // one line, but the program's own
  std::vector<OptionText> options;
  std::vector<OptionText> arguments;  // without a flag
  std::string footer;                 // paragraphs; lines that begin with blanks are as they are
};

struct ProgramText {
  CommandText program;
  std::vector<CommandText> subcommands;
};

// All of it, but for what --help does not show either.
ProgramText describe_program();

}  // namespace mayfly
