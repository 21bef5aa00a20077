// Configuration files: the input is the file's text. What is accepted must be a microVM that can be built,
// and what is refused must say so in a sentence that begins with the file's name.
#include "api/config_file.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"

namespace mayfly {
namespace {

constexpr std::string_view kName = "f.json";

bool is_text(const std::string& text) {
  return text.find('\0') == std::string::npos;
}

void check_accepted(const api::ConfigFile& file) {
  MAYFLY_CHECK(file.machine.validate().has_value(), "a machine that is accepted can be made");
  MAYFLY_CHECK(!file.machine.track_dirty_pages, "what is not built yet is refused");
  const BootSourceConfig& boot = file.boot_source;
  MAYFLY_CHECK(is_text(boot.kernel_image_path) && is_text(boot.initrd_path.value_or("")) &&
                   is_text(boot.boot_args.value_or("")),
               "no text is cut where the system ends it");
  if (file.logger) {
    MAYFLY_CHECK(is_text(file.logger->log_path.value_or("")) && is_text(file.logger->level.value_or("")),
                 "no text of the logger is cut");
  }
  if (file.metrics) {
    MAYFLY_CHECK(is_text(file.metrics->metrics_path), "no text of the metrics is cut");
  }
}

}  // namespace
}  // namespace mayfly

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string input(data, data + size);
  const auto file = mayfly::api::parse_config_file(input, mayfly::kName);
  if (file) {
    mayfly::check_accepted(*file);
  } else {
    MAYFLY_CHECK(file.error().message().starts_with(std::string(mayfly::kName) + ": "),
                 "an error begins with the file's name");
  }
  return 0;
}
