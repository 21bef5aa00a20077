#include "devices/virtio/net/passt_backend.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "base/log.h"

namespace mayfly {
namespace {

std::array<std::byte, 4> to_length(std::size_t size) {
  return {static_cast<std::byte>(size >> 24), static_cast<std::byte>(size >> 16),
          static_cast<std::byte>(size >> 8), static_cast<std::byte>(size)};
}

std::size_t from_length(std::span<const std::byte> bytes) {
  std::size_t size = 0;
  for (const std::byte byte : bytes) {
    size = size << 8 | static_cast<std::size_t>(byte);
  }
  return size;
}

bool would_block(int os_errno) {
  return os_errno == EAGAIN || os_errno == EINTR || os_errno == ENOBUFS;
}

}  // namespace

PasstBackend::PasstBackend(UniqueFd socket, std::unique_ptr<PasstProcess> process)
    : process_(std::move(process)), port_(std::move(socket), process_.get()) {
  ::fcntl(port_.fd(), F_SETFL, O_NONBLOCK);  // cannot fail for a socket; the other end has a mode of its own
}

PasstBackend::Port::Port(UniqueFd socket, PasstProcess* process)
    : socket_(std::move(socket)),
      process_(process),
      in_(make_untouched_bytes(kInput)),
      out_(make_untouched_bytes(kOutput)) {}

NetPort::Status PasstBackend::Port::closed(const char* why) {
  if (!std::exchange(closed_, true)) {
    const std::string words = process_ != nullptr ? process_->last_words() : "";
    LOG_WARN("passt: %s%s%s", why, words.empty() ? "" : ": ", words.c_str());
  }
  return Status::kClosed;
}

NetPort::Status PasstBackend::Port::flush() {
  while (unsent()) {
    // SAFETY: bytes are read as characters.
    const auto* const unsent = reinterpret_cast<const char*>(&out_[out_start_]);
    const ssize_t sent = send_at_once(socket_.get(), {unsent, out_end_ - out_start_});
    if (sent < 0) {
      return would_block(errno) ? Status::kWouldBlock : closed("it takes no more frames");
    }
    out_start_ += static_cast<std::size_t>(sent);
  }
  return Status::kDone;
}

NetPort::Status PasstBackend::Port::send(const NetHeader& /*header*/, ChainReader frame) {
  if (closed_) {
    return Status::kClosed;
  }
  if (unsent()) {
    if (const Status status = flush(); status != Status::kDone) {
      return status;
    }
  }
  const std::size_t size = frame.remaining();
  auto length = to_length(size);
  ChainReader pieces = frame;
  pieces_.clear();
  pieces_.push_back({length.data(), length.size()});
  pieces.take(size, pieces_);
  msghdr message{};
  message.msg_iov = pieces_.data();
  message.msg_iovlen = pieces_.size();
  const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent < 0) {
    return would_block(errno) ? Status::kWouldBlock : closed("it takes no more frames");
  }
  // Once a part is out the others must follow: they are kept until there is room.
  const auto done = static_cast<std::size_t>(sent);
  const std::size_t of_length = std::min(done, kLength);
  std::memcpy(out_.get(), length.data() + of_length, kLength - of_length);
  out_start_ = 0;
  out_end_ = kLength - of_length;
  const std::size_t of_frame = done - of_length;
  frame.skip(of_frame);
  frame.read(std::span(&out_[out_end_], size - of_frame));
  out_end_ += size - of_frame;
  return Status::kDone;
}

bool PasstBackend::Port::length_is_possible() const {
  const std::span<const std::byte> all(&in_[in_start_], in_end_ - in_start_);
  return all.size() < kLength || from_length(all.first(kLength)) <= kMaxFrame;
}

std::optional<std::span<const std::byte>> PasstBackend::Port::next() const {
  const std::span<const std::byte> all(&in_[in_start_], in_end_ - in_start_);
  if (all.size() < kLength) {
    return std::nullopt;
  }
  const std::size_t size = kLength + from_length(all.first(kLength));
  return all.size() < size ? std::nullopt : std::optional(all.first(size));
}

// At least one more byte, or why not.
NetPort::Status PasstBackend::Port::fill() {
  if (in_start_ != 0) {
    std::memmove(in_.get(), &in_[in_start_], in_end_ - in_start_);
    in_end_ -= in_start_;
    in_start_ = 0;
  }
  const ssize_t size = ::read(socket_.get(), &in_[in_end_], kInput - in_end_);
  if (size > 0) {
    in_end_ += static_cast<std::size_t>(size);
    return Status::kDone;
  }
  return size < 0 && would_block(errno) ? Status::kWouldBlock : closed("it has ended");
}

NetPort::Received PasstBackend::Port::receive(NetHeader& header, ChainWriter frame,
                                              std::span<std::byte> rest) {
  if (closed_) {
    return {Status::kClosed, 0};
  }
  // A bounded number of rounds: each brings a byte, and a frame's bytes fit the buffer.
  std::optional<std::span<const std::byte>> whole;
  while (!whole) {
    if (!length_is_possible()) {
      return {closed("it sent what is no frame"), 0};
    }
    whole = next();
    if (!whole) {
      if (const Status status = fill(); status != Status::kDone) {
        return {status, 0};
      }
    }
  }
  in_start_ += whole->size();
  const std::span<const std::byte> bytes = whole->subspan(kLength);
  const std::size_t here = std::min<std::size_t>(bytes.size(), frame.remaining());
  MAYFLY_CHECK(bytes.size() - here <= rest.size(), "a frame of passt's is larger than any");
  header = {};
  frame.write(bytes.first(here));
  std::ranges::copy(bytes.subspan(here), rest.begin());
  return {Status::kDone, bytes.size()};
}

}  // namespace mayfly
