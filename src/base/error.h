// What went wrong, in terms a person can act on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mayfly {

// The kind of an error: decides the exit code of the process and the status of an API answer, never the text.
enum class ErrorCode : std::uint8_t {
  kInvalidArgument,  // the caller's input: a flag, a request, a configuration file
  kInvalidImage,     // a kernel, initrd, disk or snapshot file that is not what it says it is
  kOutOfRange,       // a value or an address outside what is allowed
  kNotFound,         // something named does not exist
  kPermission,       // the host refuses it to this user
  kUnsupported,      // the host or this build cannot do it
  kBusy,             // held by another, or not in a state that allows it
  kExhausted,        // out of memory, descriptors, space
  kIo,               // the host failed while doing it
  kInternal,         // an answer of the kernel or of ourselves that should not occur
};

// An error: its kind, the host's errno where one was given (else 0), and what was being done to what.
class Error {
 public:
  // `what` is a full clause without a final stop: "kernel image /k: not an ELF file".
  Error(ErrorCode code, std::string what) : code_(code), what_(std::move(what)) {}

  // From a failed system call: `doing` says what was being done to what ("open /dev/kvm"); the kind is
  // derived from `os_errno` and the message ends with its description and name ("... : Permission denied
  // (EACCES)").
  static Error from_errno(int os_errno, std::string_view doing);

  ErrorCode code() const { return code_; }
  int os_errno() const { return os_errno_; }
  const std::string& message() const { return what_; }

  // The same error seen from further out: "<outer>: <message>".
  Error within(std::string_view outer) const;

 private:
  ErrorCode code_;
  int os_errno_ = 0;
  std::string what_;
};

}  // namespace mayfly
