#include "devices/virtio/net/tap_backend.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace mayfly {
namespace {

constexpr const char* kDevice = "/dev/net/tun";

Error open_error(const Error& cause) {
  switch (cause.os_errno()) {
    case ENOENT:
    case ENXIO:
    case ENODEV:
      return cause.within(
          "the host has no taps: load its module (modprobe tun), or in a jail make the device");
    case EACCES:
    case EPERM:
      return cause.within("taps are not for this user: let it read and write /dev/net/tun");
    default:
      return cause;
  }
}

// How a person makes it.
std::string making(const std::string& tap, std::size_t pairs) {
  return "ip tuntap add dev " + tap + " mode tap" + (pairs > 1 ? " multi_queue" : "");
}

// What TUNSETIFF says: the flags that an interface was made with must be given again.
Error attach_error(const std::string& tap, std::size_t pairs, int os_errno) {
  const auto error = [os_errno](const std::string& doing) { return Error::from_errno(os_errno, doing); };
  switch (os_errno) {
    case EPERM:
    case EACCES:
      return error("it is another user's: make it for this one (" + making(tap, pairs) + " user USER)");
    case EBUSY:
      return error("another process uses it");
    case EINVAL:
      return error(
          pairs > 1
              ? "it is no tap, or was made for a single queue while " + std::to_string(pairs) +
                    " queue pairs are asked for (" + making(tap, pairs) + ")"
              : std::string("it is no tap, or was made for several queues while one pair is asked for"));
    case E2BIG:
      return error("other processes use all of its queues");
    default:
      return error("attach to it");
  }
}

Result<UniqueFd> open_queue(const std::string& tap, std::size_t pairs) {
  auto fd = open_file(kDevice, O_RDWR | O_NONBLOCK, "tap driver");
  if (!fd) {
    return tl::make_unexpected(open_error(fd.error()));
  }
  ifreq request{};
  if (tap.empty() || tap.size() >= sizeof(request.ifr_name)) {
    return fail(ErrorCode::kInvalidArgument, "its name must have 1 to 15 characters");
  }
  // TUNSETIFF would make what is not there: an interface that is down, leads nowhere and vanishes with us,
  // which is never what somebody meant who mistyped a name.
  if (::if_nametoindex(tap.c_str()) == 0 && errno == ENODEV) {
    return fail(ErrorCode::kNotFound, "there is no interface of this name here: make it first (" +
                                          making(tap, pairs) + ", and then ip link set " + tap + " up)");
  }
  std::memcpy(request.ifr_name, tap.data(), tap.size());
  request.ifr_flags =
      static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (pairs > 1 ? IFF_MULTI_QUEUE : 0));
  if (::ioctl(fd->get(), TUNSETIFF, &request) != 0) {
    return tl::make_unexpected(attach_error(tap, pairs, errno));
  }
  int header_size = sizeof(NetHeader);
  if (::ioctl(fd->get(), TUNSETVNETHDRSZ, &header_size) != 0) {
    return fail_errno(errno, "set the size of its frames' headers");
  }
  return fd;
}

unsigned to_flags(const NetOffloads& offloads) {
  unsigned flags = 0;
  if (offloads.checksum) {
    flags |= TUN_F_CSUM;
    flags |= offloads.tso4 ? TUN_F_TSO4 : 0;
    flags |= offloads.tso6 ? TUN_F_TSO6 : 0;
    flags |= offloads.ufo ? TUN_F_UFO : 0;
  }
  return flags;
}

bool set_flags(int fd, const NetOffloads& offloads) {
  return ::ioctl(fd, TUNSETOFFLOAD, static_cast<unsigned long>(to_flags(offloads))) == 0;
}

NetPort::Status status_of(int os_errno) {
  switch (os_errno) {
    case EAGAIN:
    case EINTR:
      return NetPort::Status::kWouldBlock;
    case EBADFD:  // the interface was deleted
    case ENODEV:
      return NetPort::Status::kClosed;
    default:
      return NetPort::Status::kFailed;
  }
}

}  // namespace

Result<std::unique_ptr<TapBackend>> TapBackend::open(const std::string& tap, std::size_t pairs) {
  const auto within = [&tap](const Error& error) { return error.within("tap " + tap); };
  std::vector<Port> ports;
  ports.reserve(pairs);
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    auto fd = open_queue(tap, pairs);
    if (!fd) {
      return tl::make_unexpected(within(fd.error()));
    }
    ports.emplace_back(std::move(*fd));
  }
  std::unique_ptr<TapBackend> backend(new TapBackend(tap, std::move(ports)));
  // What this host's taps can do is found out by asking for it: there is no other way.
  const int first = backend->ports_.front().fd();
  for (const NetOffloads candidate :
       {NetOffloads{.checksum = true, .tso4 = true, .tso6 = true, .ufo = true},
        NetOffloads{.checksum = true, .tso4 = true, .tso6 = true}, NetOffloads{.checksum = true}}) {
    if (set_flags(first, candidate)) {
      backend->offloads_ = candidate;
      break;
    }
  }
  if (auto done = backend->set_offloads({}); !done) {
    return tl::make_unexpected(std::move(done.error()));
  }
  if (auto done = backend->use_pairs(1); !done) {
    return tl::make_unexpected(std::move(done.error()));
  }
  return backend;
}

TapBackend::TapBackend(std::string tap, std::vector<Port> ports)
    : tap_(std::move(tap)), ports_(std::move(ports)) {}

Result<void> TapBackend::set_offloads(const NetOffloads& offloads) {
  // Belongs to the interface, not to a queue.
  if (!set_flags(ports_.front().fd(), offloads)) {
    return fail_errno(errno, "tap " + tap_ + ": set the offloads");
  }
  return {};
}

Result<void> TapBackend::use_pairs(std::size_t pairs) {
  for (std::size_t pair = 0; pair < ports_.size(); ++pair) {
    Port& port = ports_[pair];
    const bool wanted = pair < pairs;
    if (port.attached == wanted) {
      continue;
    }
    ifreq request{};
    request.ifr_flags = wanted ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE;
    if (::ioctl(port.fd(), TUNSETQUEUE, &request) != 0) {
      return fail_errno(
          errno, "tap " + tap_ + ": " + (wanted ? "attach" : "detach") + " queue " + std::to_string(pair));
    }
    port.attached = wanted;
  }
  return {};
}

TapBackend::Port::Port(UniqueFd fd) : fd_(std::move(fd)) {}

NetPort::Status TapBackend::Port::send(const NetHeader& header, ChainReader frame) {
  NetHeader copy = header;
  pieces_.clear();
  pieces_.push_back({&copy, sizeof(copy)});
  frame.take(frame.remaining(), pieces_);
  // At no offset these are writev() and readv(), and one call each for a filter to allow, with those of
  // files.
  if (::pwritev2(fd_.get(), pieces_.data(), static_cast<int>(pieces_.size()), -1, 0) < 0) {
    return status_of(errno);
  }
  return Status::kDone;
}

NetPort::Received TapBackend::Port::receive(NetHeader& header, ChainWriter frame, std::span<std::byte> rest) {
  pieces_.clear();
  pieces_.push_back({&header, sizeof(header)});
  frame.take(frame.remaining(), pieces_);
  pieces_.push_back({rest.data(), rest.size()});
  const ssize_t bytes = ::preadv2(fd_.get(), pieces_.data(), static_cast<int>(pieces_.size()), -1, 0);
  if (bytes < 0) {
    return {status_of(errno), 0};
  }
  if (static_cast<std::size_t>(bytes) < sizeof(header)) {
    return {Status::kFailed, 0};
  }
  return {Status::kDone, static_cast<std::size_t>(bytes) - sizeof(header)};
}

}  // namespace mayfly
