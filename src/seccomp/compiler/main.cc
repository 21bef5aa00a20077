// mayfly-seccomp: compiles policies into the filters that mayfly --seccomp-filter takes.
#include <getopt.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/exit_code.h"
#include "base/file.h"
#include "base/result.h"
#include "seccomp/compiler/compile.h"
#include "seccomp/compiler/policy.h"

namespace mayfly::seccomp {
namespace {

constexpr const char* kHelp =
    "Compiles system call policies into filters for 'mayfly --seccomp-filter'.\n"
    "Usage: mayfly-seccomp [OPTION...] POLICY...\n"
    "\n"
    "  -o, --output FILE  Where to write to (default: standard output)\n"
    "      --count        Only say how many system calls each policy allows\n"
    "      --array        Write the elements of an array in C++\n"
    "      --names        Write the names of the system calls, as a string in C++; takes no POLICY\n"
    "  -h, --help         This text\n"
    "\n"
    "Each POLICY is a JSON file that says what one thread may do; there must be one for each thread: "
    "monitor,\n"
    "api and vcpu; without one for snapshot or guard, that thread has Mayfly's own. Mayfly's are a good "
    "beginning\n"
    "(resources/seccomp in its source); docs/seccomp.md has the format. The filters are for this "
    "processor's\n"
    "architecture and this version of Mayfly.\n"
    "\n"
    "Exit status: 0 done, 1 the output cannot be written, 152 a policy is wrong, 153 the arguments cannot "
    "be\n"
    "used.\n";

struct Arguments {
  std::vector<std::string> policies;
  std::string output;
  bool array = false;
  bool names = false;
  bool count = false;
  bool help = false;
};

int refuse(ExitCode code, const std::string& text) {
  std::fprintf(stderr, "mayfly-seccomp: %s\n", text.c_str());
  return static_cast<int>(code);
}

// Bytes as the elements of an array of char in C++.
std::string to_array(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) {
    text += std::to_string(static_cast<int>(byte)) + ",\n";
  }
  return text;
}

// Lines as a string literal in C++.
std::string to_literal(const std::string& lines) {
  std::string text = "\"";
  for (const char character : lines) {
    if (character == '\n') {
      text += "\\n\"\n\"";
    } else {
      text += character;
    }
  }
  return text + "\"\n";
}

Result<std::vector<Policy>> read_policies(const std::vector<std::string>& paths) {
  std::vector<Policy> policies;
  for (const std::string& path : paths) {
    MAYFLY_TRY_ASSIGN(const std::string text, read_file(path, "policy", kMaxPolicy));
    MAYFLY_TRY_ASSIGN(Policy policy, parse_policy(text, path));
    policies.push_back(std::move(policy));
  }
  return policies;
}

std::string counts(const std::vector<Policy>& policies) {
  std::string text;
  for (const Policy& policy : policies) {
    std::set<int> calls;
    std::ranges::for_each(policy.rules, [&calls](const Rule& rule) { calls.insert(rule.number); });
    text += std::string(name_of(policy.thread)) + ": " + std::to_string(calls.size()) + " system calls, " +
            std::to_string(policy.rules.size()) + " rules\n";
  }
  return text;
}

// The whole text or none of it that anybody could take for the whole.
bool write_whole(const std::string& path, const std::string& text) {
  if (path.empty()) {
    return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  }
  const std::string draft = path + ".part";
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(draft.c_str(), "we"), std::fclose);
  const bool written = file && std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() &&
                       std::fflush(file.get()) == 0;
  if (!written || std::rename(draft.c_str(), path.c_str()) != 0) {
    const int error = errno;
    if (file) {
      std::remove(draft.c_str());
    }
    errno = error;
    return false;
  }
  return true;
}

int run(const Arguments& arguments) {
  std::string text;
  if (arguments.names) {
    text = to_literal(syscall_names());
  } else {
    const auto policies = read_policies(arguments.policies);
    if (!policies) {
      return refuse(ExitCode::kBadConfiguration, policies.error().message());
    }
    if (arguments.count) {
      text = counts(*policies);
    } else {
      const auto file = compile(*policies);
      if (!file) {
        return refuse(ExitCode::kBadConfiguration, file.error().message());
      }
      text = arguments.array ? to_array(*file) : *file;
    }
  }
  if (!write_whole(arguments.output, text)) {
    return refuse(ExitCode::kError, Error::from_errno(errno, "write " + arguments.output).message());
  }
  return 0;
}

// Nothing where they cannot be used; what is wrong has been said then.
std::optional<Arguments> parse(int argument_count, char** words) {
  constexpr int kArray = 1;
  constexpr int kNames = 2;
  constexpr int kCount = 3;
  static constexpr std::array kOptions = {
      option{"output", required_argument, nullptr, 'o'}, option{"array", no_argument, nullptr, kArray},
      option{"names", no_argument, nullptr, kNames},     option{"count", no_argument, nullptr, kCount},
      option{"help", no_argument, nullptr, 'h'},         option{nullptr, 0, nullptr, 0},
  };
  Arguments arguments;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the program has one thread
  for (int found = 0;
       (found = ::getopt_long(argument_count, words, "o:h", kOptions.data(), nullptr)) != -1;) {
    switch (found) {
      case 'o':
        arguments.output = optarg;
        break;
      case kArray:
        arguments.array = true;
        break;
      case kNames:
        arguments.names = true;
        break;
      case kCount:
        arguments.count = true;
        break;
      case 'h':
        arguments.help = true;
        break;
      default:
        return std::nullopt;
    }
  }
  arguments.policies.assign(words + optind, words + argument_count);
  return arguments;
}

int main_of(int argument_count, char** words) {
  const auto arguments = parse(argument_count, words);
  if (!arguments) {
    return static_cast<int>(ExitCode::kBadArguments);
  }
  if (arguments->help) {
    return std::fputs(kHelp, stdout) >= 0 && std::fflush(stdout) == 0 ? 0 : 1;
  }
  if (arguments->policies.empty() != arguments->names) {
    return refuse(ExitCode::kBadArguments, arguments->names
                                               ? "--names takes no POLICY; see mayfly-seccomp --help"
                                               : "there is no POLICY; see mayfly-seccomp --help");
  }
  return run(*arguments);
}

}  // namespace
}  // namespace mayfly::seccomp

int main(int argument_count, char** arguments) {
  return mayfly::seccomp::main_of(argument_count, arguments);
}
