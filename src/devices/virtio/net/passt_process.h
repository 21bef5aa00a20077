// passt, which gives a guest a network in the name of an ordinary user: https://passt.top. A child process.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mayfly {

struct UserNetConfig;

// The last line that is to be read from `fd` (borrowed, non-blocking) now, leaving out empty ones and what
// passt says where there is no system log; or nothing. Of what is there, and of what is written meanwhile,
// the first kMostWords bytes are looked at: who writes it may write faster than we read.
inline constexpr std::size_t kMostWords = std::size_t{64} << 10;
std::string last_line(int fd);

// A passt that runs. It ends when the other end of its socket is closed, which is how it dies with us however
// we do. No signal is needed: a monitor that runs a guest may send none (resources/seccomp).
class PasstProcess {
 public:
  struct Options {
    const UserNetConfig& user;
    std::uint16_t mtu;
    std::string program = "passt";  // a path, or a name that is looked for in PATH
  };
  struct Started;

  // Starts it and waits until it is ready, which takes some 20 to 50 ms. The socket speaks its protocol: see
  // PasstBackend. To be called before the process gives up rights (it forks and executes). Errors, each with
  // what passt said: kNotFound where it is not installed, kIo where it ends at once (a port is in use or is
  // not for this user) or is not ready after ten seconds.
  static Result<Started> start(const Options& options);

  PasstProcess(const PasstProcess&) = delete;
  PasstProcess& operator=(const PasstProcess&) = delete;
  // Waits until it has ended, so that its ports are free; at most kEndTimeoutMs, as it may hang. Its socket
  // must be closed by now. The kernel is asked to reap it (SIGCHLD ignored), or does so when this process
  // ends.
  ~PasstProcess();

  pid_t pid() const { return pid_; }

  // The last line that it wrote to its standard error since it was ready or this was called last, or nothing:
  // see last_line(). Does not wait.
  std::string last_words() { return last_line(messages_.get()); }

 private:
  PasstProcess(pid_t pid, UniqueFd process, UniqueFd messages)
      : pid_(pid), process_(std::move(process)), messages_(std::move(messages)) {}

  static constexpr int kEndTimeoutMs = 2'000;

  pid_t pid_;
  UniqueFd process_;  // pidfd_open(2): becomes readable when it ends
  UniqueFd messages_;
};

struct PasstProcess::Started {
  std::unique_ptr<PasstProcess> process;
  UniqueFd socket;
};

}  // namespace mayfly
