#include "kvm/host_kind.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string_view>

#include "base/file.h"
#include "base/unique_fd.h"

namespace mayfly {
namespace {

struct Extension {
  std::string_view flag;
  std::string_view module;
  std::string_view name;
};
constexpr std::array<Extension, 2> kExtensions = {{
    {"vmx", "kvm_intel", "Intel VT-x"},
    {"svm", "kvm_amd", "AMD-V"},
}};

struct CloseFolder {
  void operator()(DIR* folder) const { ::closedir(folder); }
};

// The value of the first line `key : value`.
std::string first_value(std::string_view text, std::string_view key) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::string_view line = text.substr(at, text.find('\n', at) - at);
    at += line.size() + 1;
    const std::size_t colon = line.find(':');
    if (colon != std::string_view::npos && line.starts_with(key) &&
        line.find_first_not_of(" \t", key.size()) == colon) {
      const std::size_t value = line.find_first_not_of(" \t", colon + 1);
      return std::string(line.substr(std::min(value, line.size())));
    }
  }
  return {};
}

std::string read_start(const std::string& path) {
  // The flags of the first processor lie well within this; the rest of a large host's file costs
  // milliseconds.
  std::string text(8192, '\0');
  const auto file = open_file(path, O_RDONLY, "processor description");
  text.resize(file ? read_at(*file, 0, {text.data(), text.size()}, path).value_or(0) : 0);
  return text;
}

bool has_word(std::string_view words, std::string_view word) {
  for (std::size_t at = words.find(word); at != std::string_view::npos; at = words.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    if ((at == 0 || words[at - 1] == ' ') && (end == words.size() || words[end] == ' ')) {
      return true;
    }
  }
  return false;
}

bool extension_in_use(const HostFacts& facts) {
  return std::any_of(kExtensions.begin(), kExtensions.end(), [&facts](const Extension& extension) {
    return has_word(facts.cpu_flags, extension.flag) &&
           std::find(facts.modules.begin(), facts.modules.end(), extension.module) != facts.modules.end();
  });
}

}  // namespace

HostFacts read_host_facts(const std::string& cpuinfo, const std::string& modules) {
  HostFacts facts;
  const std::string text = read_start(cpuinfo);
  facts.cpu_model = first_value(text, "model name");
  facts.cpu_flags = first_value(text, "flags");
  const std::unique_ptr<DIR, CloseFolder> folder(::opendir(modules.c_str()));
  facts.modules_known = folder != nullptr;
  while (const dirent* entry = folder ? ::readdir(folder.get()) : nullptr) {
    const std::string name(entry->d_name);
    if (name.starts_with("kvm")) {
      facts.modules.push_back(name);
    }
  }
  std::sort(facts.modules.begin(), facts.modules.end());
  return facts;
}

std::string_view processor_extension(const HostFacts& facts) {
  const auto found = std::find_if(
      kExtensions.begin(), kExtensions.end(),
      [&facts](const Extension& extension) { return has_word(facts.cpu_flags, extension.flag); });
  return found != kExtensions.end() ? found->name : std::string_view();
}

bool lacks_hardware_modules(const std::string& modules) {
  const auto is_there = [&modules](std::string_view module) {
    return ::access((modules + "/").append(module).c_str(), F_OK) == 0;
  };
  return std::none_of(kExtensions.begin(), kExtensions.end(),
                      [&](const Extension& extension) { return is_there(extension.module); }) &&
         is_there("kvm");
}

HostKind classify_host(const HostFacts& facts) {
  if (facts.cpu_flags.empty() || !facts.modules_known) {
    return HostKind::kUnknown;
  }
  if (extension_in_use(facts)) {
    return HostKind::kHardware;
  }
  return facts.modules.empty() ? HostKind::kNoKvm : HostKind::kNoHardware;
}

}  // namespace mayfly
