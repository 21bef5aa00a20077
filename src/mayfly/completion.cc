#include "mayfly/completion.h"

#include <algorithm>
#include <cstdint>

namespace mayfly {
namespace {

enum class ValueKind : std::uint8_t { kNone, kFile, kFileOfId, kChoice, kMicroVm, kTemplate, kOther };

constexpr std::string_view kLevels = "Error Warn Info Debug Trace Off";

bool is_choice(std::string_view value) {
  return value.find('|') != std::string_view::npos && std::ranges::all_of(value, [](char character) {
           return (character >= 'a' && character <= 'z') || (character >= '0' && character <= '9') ||
                  character == '|';
         });
}

ValueKind kind_of(const OptionText& option) {
  if (option.value.empty()) {
    return ValueKind::kNone;
  }
  if (option.value == "FILE" || option.value == "PATH" || option.value.starts_with("IMAGE")) {
    return ValueKind::kFile;
  }
  if (option.value.starts_with("ID=IMAGE")) {
    return ValueKind::kFileOfId;
  }
  if (option.value == "MICROVM") {
    return ValueKind::kMicroVm;
  }
  if (option.value == "TEMPLATE") {
    return ValueKind::kTemplate;
  }
  return option.value == "LEVEL" || is_choice(option.value) ? ValueKind::kChoice : ValueKind::kOther;
}

// With a blank between them.
std::string choices_of(const OptionText& option) {
  if (option.value == "LEVEL") {
    return std::string(kLevels);
  }
  std::string words = option.value;
  std::ranges::replace(words, '|', ' ');
  return words;
}

// The beginning of a help text, up to where it goes into details.
std::string short_help(std::string_view help) {
  std::size_t end = help.size();
  for (const std::string_view stop : {". ", ": ", "; ", " (", ", a number"}) {
    end = std::min(end, help.find(stop));
  }
  return std::string(help.substr(0, end));
}

std::string replace_all(std::string text, std::string_view what, std::string_view with) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + with.size())) {
    text.replace(at, what.size(), with);
  }
  return text;
}

std::string bash_words(const CommandText& command) {
  std::string words;
  for (const OptionText& option : command.options) {
    words.append(words.empty() ? "" : " ").append(option.name);
  }
  return words;
}

std::string bash_action(const OptionText& option) {
  switch (kind_of(option)) {
    case ValueKind::kFile:
      return "_mayfly_files";
    case ValueKind::kChoice:
      return "_mayfly_words '" + choices_of(option) + "'";
    case ValueKind::kMicroVm:
      return "_mayfly_words \"$(\"$1\" ps --quiet 2>/dev/null)\"";
    case ValueKind::kTemplate:
      return "_mayfly_words \"$(\"$1\" ps --quiet --templates 2>/dev/null)\"";
    case ValueKind::kFileOfId:  // the id comes first, and is not known
    case ValueKind::kNone:
    case ValueKind::kOther:
      return ":";
  }
  return ":";
}

// `prefix` is what the word before is looked up under: the subcommand's name.
void append_bash_values(std::string& script, const CommandText& command, const std::string& prefix) {
  for (const OptionText& option : command.options) {
    if (kind_of(option) != ValueKind::kNone) {
      script.append("    '" + prefix + " " + option.name + "') " + bash_action(option) + "; return ;;\n");
    }
    if (option.value.starts_with("ID=")) {
      const bool is_file = kind_of(option) == ValueKind::kFileOfId;
      script.append("    '" + prefix + " " + option.name + " ID') " + (is_file ? "_mayfly_files" : ":") +
                    "; return ;;\n");
    }
  }
}

// By how many of them come before the word.
void append_bash_arguments(std::string& script, const CommandText& command) {
  std::string valued;
  for (const OptionText& option : command.options) {
    if (kind_of(option) != ValueKind::kNone) {
      valued.append(" ").append(option.name);
      valued.append(option.short_name.empty() ? "" : " " + option.short_name);
    }
  }
  script.append("      if [[ $word != -* ]]; then\n        _mayfly_position '" + valued + " '\n" +
                "        case $position in\n");
  for (std::size_t index = 0; index < command.arguments.size(); ++index) {
    const OptionText& argument = command.arguments[index];
    script.append("          " + (argument.repeatable ? "*" : std::to_string(index)) + ") " +
                  bash_action(argument) + " ;;\n");
  }
  script.append("        esac\n        return\n      fi\n");
}

std::string bash_script(const ProgramText& text) {
  std::string names;
  for (const CommandText& command : text.subcommands) {
    names.append(names.empty() ? "" : " ").append(command.name);
  }
  std::string script =
      "# bash completion for mayfly; made by: mayfly completion bash\n"
      "_mayfly_words() {\n"
      "  local IFS=$' \\t\\n'\n"
      "  COMPREPLY=($(compgen -W \"$1\" -- \"$word\"))\n"
      "}\n"
      "_mayfly_files() {\n"
      "  local IFS=$'\\n'\n"
      "  compopt -o filenames 2>/dev/null\n"
      "  COMPREPLY=($(compgen -f -- \"$word\"))\n"
      "}\n"
      "# How many arguments stand between the subcommand and the word; $1: the flags that take a value.\n"
      "_mayfly_position() {\n"
      "  local at\n"
      "  position=0\n"
      "  for ((at = 2; at < COMP_CWORD; at++)); do\n"
      "    if [[ ${COMP_WORDS[at]} == [=:] ]]; then\n"
      "      ((at++))\n"
      "    elif [[ $1 == *\" ${COMP_WORDS[at]} \"* && ${COMP_WORDS[at + 1]} != = ]]; then\n"
      "      ((at++))\n"
      "    elif [[ ${COMP_WORDS[at]} != -* ]]; then\n"
      "      ((position++))\n"
      "    fi\n"
      "  done\n"
      "}\n"
      "_mayfly() {\n"
      "  local position word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=\n"
      "  COMPREPLY=()\n"
      "  local at=$((COMP_CWORD - 1))\n"
      "  # --flag=value is three words to bash, and so is the ID=FILE that comes behind some flags.\n"
      "  if [[ $word == = ]]; then\n"
      "    word=\n"
      "  elif [[ $before == = ]]; then\n"
      "    before=${COMP_WORDS[--at]}\n"
      "  fi\n"
      "  if ((at < COMP_CWORD - 1 || ${#word} == 0)) && [[ $before != -* && ${COMP_WORDS[at + 1]} == = ]]; "
      "then\n"
      "    [[ ${COMP_WORDS[--at]} == = ]] && ((at--))\n"
      "    before=\"${COMP_WORDS[at]} ID\"\n"
      "  fi\n"
      "  if ((COMP_CWORD > 1)) && [[ ' " +
      names +
      " ' == *\" ${COMP_WORDS[1]} \"* ]]; then\n"
      "    command=${COMP_WORDS[1]}\n"
      "  fi\n"
      "  case \"$command $before\" in\n";
  append_bash_values(script, text.program, "");
  for (const CommandText& command : text.subcommands) {
    append_bash_values(script, command, command.name);
  }
  script.append(
      "  esac\n"
      "  case $command in\n");
  for (const CommandText& command : text.subcommands) {
    script.append("    " + command.name + ")\n");
    if (!command.arguments.empty()) {
      append_bash_arguments(script, command);
    }
    script.append("      _mayfly_words '" + bash_words(command) + "'\n      ;;\n");
  }
  script.append("    *) _mayfly_words '" + names + " " + bash_words(text.program) + "' ;;\n");
  return script.append(
      "  esac\n"
      "}\n"
      "complete -F _mayfly mayfly\n");
}

std::string zsh_quoted(std::string text) {
  return replace_all(std::move(text), "'", "'\\''");
}

std::string zsh_action(const OptionText& option) {
  switch (kind_of(option)) {
    case ValueKind::kFile:
      return "_files";
    case ValueKind::kFileOfId:
      return "_mayfly_files_of_id";
    case ValueKind::kChoice:
      return "(" + choices_of(option) + ")";
    case ValueKind::kMicroVm:
      return "_mayfly_microvms";
    case ValueKind::kTemplate:
      return "_mayfly_templates";
    case ValueKind::kNone:
    case ValueKind::kOther:
      return " ";
  }
  return " ";
}

// One argument for _arguments: brackets and colons have a meaning there.
std::string zsh_specification(const OptionText& option) {
  std::string help = short_help(option.help);
  for (const char* special : {"[", "]", ":"}) {
    help = replace_all(std::move(help), special, std::string("\\") + special);
  }
  std::string text = std::string(option.repeatable ? "*" : "") + option.name;
  if (kind_of(option) == ValueKind::kNone) {
    return "'" + zsh_quoted(text + "[" + help + "]") + "'";
  }
  return "'" + zsh_quoted(text + "=[" + help + "]:value:" + zsh_action(option)) + "'";
}

std::string zsh_arguments(const CommandText& command, const std::string& indent) {
  std::string text = indent + "_arguments";
  for (const OptionText& option : command.options) {
    text.append(" \\\n" + indent + "  " + zsh_specification(option));
  }
  for (const OptionText& argument : command.arguments) {
    text.append(" \\\n" + indent + "  '" + (argument.repeatable ? "*" : "") + ":" + argument.name + ":" +
                zsh_action(argument) + "'");
  }
  return text + "\n";
}

std::string zsh_script(const ProgramText& text) {
  std::string script =
      "#compdef mayfly\n"
      "# zsh completion for mayfly; made by: mayfly completion zsh\n"
      "_mayfly_names() {\n"
      "  local -a names\n"
      "  names=(${(f)\"$(mayfly ps --quiet \"$@\" 2>/dev/null)\"})\n"
      "  compadd -a names\n"
      "}\n"
      "_mayfly_files_of_id() { compset -P '*=' && _files }\n"
      "_mayfly_microvms() { _mayfly_names }\n"
      "_mayfly_templates() { _mayfly_names --templates }\n"
      "_mayfly() {\n"
      "  local -a subcommands\n"
      "  subcommands=(\n";
  for (const CommandText& command : text.subcommands) {
    script.append("    '" + zsh_quoted(command.name + ":" + replace_all(command.summary, ":", "\\:")) +
                  "'\n");
  }
  script.append(
      "  )\n"
      "  if ((CURRENT == 2)) && [[ $PREFIX != -* ]]; then\n"
      "    _describe subcommand subcommands\n"
      "    return\n"
      "  fi\n"
      "  case $words[2] in\n");
  for (const CommandText& command : text.subcommands) {
    script.append("    " + command.name + ")\n      shift words\n      ((CURRENT--))\n")
        .append(zsh_arguments(command, "      "))
        .append("      ;;\n");
  }
  script.append("    *)\n").append(zsh_arguments(text.program, "      ")).append("      ;;\n");
  // Loaded by itself it is called from here; sourced, it is made known.
  return script.append(
      "  esac\n"
      "}\n"
      "if [[ $funcstack[1] == _mayfly ]]; then\n"
      "  _mayfly \"$@\"\n"
      "else\n"
      "  compdef _mayfly mayfly\n"
      "fi\n");
}

std::string fish_quoted(std::string text) {
  return "'" + replace_all(replace_all(std::move(text), "\\", "\\\\"), "'", "\\'") + "'";
}

std::string fish_action(const OptionText& option) {
  switch (kind_of(option)) {
    case ValueKind::kNone:
      return "";
    case ValueKind::kFile:
    case ValueKind::kFileOfId:  // behind a '=' fish completes files
      return " -r -F";
    case ValueKind::kChoice:
      return " -x -a " + fish_quoted(choices_of(option));
    case ValueKind::kMicroVm:
      return " -x -a '(mayfly ps --quiet 2>/dev/null)'";
    case ValueKind::kTemplate:
      return " -x -a '(mayfly ps --quiet --templates 2>/dev/null)'";
    case ValueKind::kOther:
      return " -x";
  }
  return "";
}

void append_fish(std::string& script, const CommandText& command, const std::string& condition) {
  const std::string start = "complete -c mayfly -n '" + condition + "'";
  for (const OptionText& option : command.options) {
    script.append(start + " -l " + option.name.substr(2) + fish_action(option) + " -d " +
                  fish_quoted(short_help(option.help)) + "\n");
  }
  for (const OptionText& argument : command.arguments) {
    script.append(start + fish_action(argument) + "\n");
  }
}

std::string fish_script(const ProgramText& text) {
  std::string script =
      "# fish completion for mayfly; made by: mayfly completion fish\n"
      "complete -c mayfly -f\n";
  for (const CommandText& command : text.subcommands) {
    script.append("complete -c mayfly -n __fish_use_subcommand -a " + command.name + " -d " +
                  fish_quoted(command.summary) + "\n");
  }
  append_fish(script, text.program, "__fish_use_subcommand");
  for (const CommandText& command : text.subcommands) {
    append_fish(script, command, "__fish_seen_subcommand_from " + command.name);
  }
  return script;
}

}  // namespace

std::string completion_script(std::string_view shell, const ProgramText& text) {
  return shell == "bash"   ? bash_script(text)
         : shell == "zsh"  ? zsh_script(text)
         : shell == "fish" ? fish_script(text)
                           : "";
}

}  // namespace mayfly
