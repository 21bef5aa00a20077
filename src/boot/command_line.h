// The kernel's command line: checked text, and the monitor's own parameters put where the kernel reads them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "memory/guest_memory.h"

namespace mayfly {

// Printable ASCII of at most layout::kCommandLineMax bytes, the terminating NUL included: true of every
// value.
class CommandLine {
 public:
  CommandLine() = default;  // empty

  // Errors (kInvalidArgument) name the position of a byte that is not printable ASCII, or both lengths.
  static Result<CommandLine> make(std::string_view text);

  // Adds a parameter of the monitor's after those of the user and before a lone "--", behind which everything
  // is for init (Documentation/admin-guide/kernel-parameters.rst). Unchanged on an error; a quotation that
  // the user left open is one, for it would swallow the parameter.
  Result<void> append(std::string_view parameter);

  const std::string& text() const { return text_; }
  std::uint64_t size() const { return text_.size() + 1; }  // bytes, the terminating NUL included

  // Writes text and NUL to `address`. `kernel_max`: the bytes that the kernel takes, the NUL included.
  Result<void> write(GuestMemory& memory, GuestAddress address, std::uint64_t kernel_max) const;

 private:
  explicit CommandLine(std::string_view text) : text_(text) {}

  std::string text_;
};

}  // namespace mayfly
