#include "base/error.h"

#include <cerrno>
#include <cstring>

namespace mayfly {
namespace {

ErrorCode code_of(int os_errno) {
  switch (os_errno) {
    case EACCES:
    case EPERM:
      return ErrorCode::kPermission;
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return ErrorCode::kNotFound;
    case ENOSYS:
    case EOPNOTSUPP:
    case ENOTTY:
      return ErrorCode::kUnsupported;
    case EBUSY:
    case EAGAIN:
    case EADDRINUSE:
      return ErrorCode::kBusy;
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
    case EDQUOT:
      return ErrorCode::kExhausted;
    case EINVAL:
      return ErrorCode::kInvalidArgument;
    default:
      return ErrorCode::kIo;
  }
}

}  // namespace

Error Error::from_errno(int os_errno, std::string_view doing) {
  std::string text(doing);
  const char* description = ::strerrordesc_np(os_errno);
  const char* name = ::strerrorname_np(os_errno);
  text.append(": ").append(description != nullptr ? description : "unknown error");
  text.append(" (").append(name != nullptr ? name : std::to_string(os_errno)).append(")");
  Error error(code_of(os_errno), std::move(text));
  error.os_errno_ = os_errno;
  return error;
}

Error Error::within(std::string_view outer) const {
  Error error = *this;
  error.what_.insert(0, ": ").insert(0, outer);
  return error;
}

}  // namespace mayfly
