#include "mayfly/clone_channel.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

#include "base/error.h"
#include "base/log.h"

namespace mayfly {
namespace {

constexpr std::size_t kMaxAnswer = 4096;

}  // namespace

Result<std::array<UniqueFd, 2>> make_clone_channel() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return fail_errno(errno, "make a channel to a clone's process");
  }
  return std::array{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

void say(const UniqueFd& channel, char what, std::string_view text) {
  std::string message(1, what);
  message.append(text.substr(0, kMaxAnswer - 1));
  // Not by send(2), which no filter of a monitor's has to allow. A reader that has gone misses nothing.
  if (::write(channel.get(), message.data(), message.size()) < 0 && errno != EPIPE) {
    LOG_WARN_LIMITED("%s", Error::from_errno(errno, "write to a clone's channel").message().c_str());
  }
}

std::string hear(const UniqueFd& channel) {
  // First how long it is: a buffer for the longest would be memory that a clone has touched for good.
  ssize_t size = 0;
  do {
    size = ::recv(channel.get(), nullptr, 0, MSG_PEEK | MSG_TRUNC);
  } while (size < 0 && errno == EINTR);
  std::string message(size < 0 ? 0 : static_cast<std::size_t>(size), '\0');
  size = ::recv(channel.get(), message.data(), message.size(), 0);
  message.resize(size < 0 ? 0 : static_cast<std::size_t>(size));
  return message;
}

}  // namespace mayfly
