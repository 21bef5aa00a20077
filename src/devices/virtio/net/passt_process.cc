#include "devices/virtio/net/passt_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

#include "base/log.h"
#include "devices/virtio/net/net_config.h"

namespace mayfly {
namespace {

constexpr int kReadyTimeoutMs = 10'000;
constexpr int kSocketInChild = 3;
constexpr int kExecFailed = 127;

struct Pipe {
  UniqueFd reader;
  UniqueFd writer;
};

Result<Pipe> make_pipe(int flags) {
  std::array<int, 2> fds{};
  if (::pipe2(fds.data(), O_CLOEXEC | flags) != 0) {
    return fail_errno(errno, "make a pipe for passt");
  }
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

Result<std::string> find_program(const std::string& name) {
  const auto missing = [&name] {
    return fail(
        ErrorCode::kNotFound,
        name + " is not installed: user networking needs it (Debian: apt install passt), or use a tap");
  };
  if (name.find('/') != std::string::npos) {
    return ::access(name.c_str(), X_OK) == 0 ? Result<std::string>(name) : missing();
  }
  const char* const path = std::getenv("PATH");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  std::string_view folders = path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin";
  while (!folders.empty()) {
    const std::size_t end = folders.find(':');
    const std::string candidate = std::string(folders.substr(0, end)) + "/" + name;
    if (::access(candidate.c_str(), X_OK) == 0) {
      return candidate;
    }
    folders.remove_prefix(end == std::string_view::npos ? folders.size() : end + 1);
  }
  return missing();
}

void add_forwards(std::vector<std::string>& arguments, const UserNetConfig& user,
                  PortForward::Protocol protocol, const char* option) {
  for (const PortForward& forward : user.forwards) {
    if (forward.protocol == protocol) {
      arguments.emplace_back(option);
      arguments.push_back((forward.host_address.empty() ? "" : forward.host_address + "/") +
                          std::to_string(forward.host_port) + ":" + std::to_string(forward.guest_port));
    }
  }
}

std::vector<std::string> arguments_for(const std::string& program, const PasstProcess::Options& options) {
  // In the foreground it stays our child. Its process id goes to standard output when it is ready.
  std::vector<std::string> arguments = {program,   "--foreground",
                                        "--quiet", "--stderr",
                                        "--fd",    std::to_string(kSocketInChild),
                                        "--pid",   "/proc/self/fd/1",
                                        "--mtu",   std::to_string(options.mtu)};
  if (!options.user.host_loopback) {
    arguments.emplace_back("--no-map-gw");
  }
  add_forwards(arguments, options.user, PortForward::Protocol::kTcp, "--tcp-ports");
  add_forwards(arguments, options.user, PortForward::Protocol::kUdp, "--udp-ports");
  return arguments;
}

struct ChildEnds {
  int null;
  int output;
  int messages;
  int socket;
};

// Between fork() and exec: async-signal-safe calls only.
[[noreturn]] void become(const char* program, char* const* arguments, const ChildEnds& ends, pid_t parent) {
  // Best effort: passt changes its user where that is root, which undoes it. The socket's end is what counts.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) {
    ::_exit(kExecFailed);
  }
  ::setsid();                  // a Ctrl-C at our terminal is not for it
  ::signal(SIGCHLD, SIG_DFL);  // what is ignored stays so, and it has children of its own
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  // The sources are not 0 to 2, which are open in every process of ours, and dup2() onto itself keeps
  // close-on-exec.
  const bool wired = ::dup2(ends.null, STDIN_FILENO) >= 0 && ::dup2(ends.output, STDOUT_FILENO) >= 0 &&
                     ::dup2(ends.messages, STDERR_FILENO) >= 0 && ::dup2(ends.socket, kSocketInChild) >= 0 &&
                     ::fcntl(kSocketInChild, F_SETFD, 0) == 0;
  if (wired) {
    ::execv(program, arguments);
  }
  ::_exit(kExecFailed);
}

enum class Start : std::uint8_t { kReady, kEnded, kLate };

Start wait_until_ready(int fd) {
  for (;;) {
    pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
    const int count = ::poll(&ready, 1, kReadyTimeoutMs);
    if (count == 0) {
      return Start::kLate;
    }
    char first = 0;
    if (count > 0) {
      const ssize_t size = ::read(fd, &first, 1);
      if (size >= 0) {
        return size == 1 ? Start::kReady : Start::kEnded;
      }
    }
    if (errno != EINTR) {
      return Start::kEnded;
    }
  }
}

}  // namespace

Result<PasstProcess::Started> PasstProcess::start(const Options& options) {
  MAYFLY_TRY_ASSIGN(const std::string program, find_program(options.program));
  std::array<int, 2> fds{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0) {
    return fail_errno(errno, "make a socket for passt");
  }
  UniqueFd ours(fds[0]);
  const UniqueFd theirs(fds[1]);
  MAYFLY_TRY_ASSIGN(Pipe output, make_pipe(0));
  // passt opens it once more, and may be another user by then.
  ::fchmod(output.writer.get(), 0666);
  // Nobody reads its messages while it runs: where the pipe is full, the newest are lost, and it goes on.
  MAYFLY_TRY_ASSIGN(Pipe messages, make_pipe(O_NONBLOCK));
  MAYFLY_TRY_ASSIGN(const UniqueFd null, open_file("/dev/null", O_RDONLY, "standard input of passt"));

  std::vector<std::string> arguments = arguments_for(program, options);
  std::vector<char*> pointers;
  pointers.reserve(arguments.size() + 1);
  for (std::string& argument : arguments) {
    pointers.push_back(argument.data());
  }
  pointers.push_back(nullptr);
  const pid_t parent = ::getpid();
  // As fork() does, but holds on to the process before it can end and be reaped. The child makes none but
  // async-signal-safe calls, so that the C library need not know of it.
  int held = -1;
  const auto pid =
      static_cast<pid_t>(::syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, nullptr, &held, nullptr, nullptr));
  if (pid < 0) {
    return fail_errno(errno, "start " + program);
  }
  if (pid == 0) {
    become(program.c_str(), pointers.data(),
           {null.get(), output.writer.get(), messages.writer.get(), theirs.get()}, parent);
  }
  UniqueFd process(held);
  Started started{
      std::unique_ptr<PasstProcess>(new PasstProcess(pid, std::move(process), std::move(messages.reader))),
      std::move(ours)};
  output.writer.reset();
  messages.writer.reset();
  const Start readiness = wait_until_ready(output.reader.get());
  if (readiness != Start::kReady) {
    const std::string words = started.process->last_words();
    // One that is late may not look at its socket.
    ::syscall(SYS_pidfd_send_signal, started.process->process_.get(), SIGKILL, nullptr, 0);
    return fail(ErrorCode::kIo,
                program +
                    (readiness == Start::kLate ? " is not ready after ten seconds" : " ended at its start") +
                    (words.empty() ? "" : ": " + words));
  }
  started.process->last_words();  // what it said on the way is not why it ends one day
  return started;
}

PasstProcess::~PasstProcess() {
  pollfd ended{.fd = process_.get(), .events = POLLIN, .revents = 0};
  int count = 0;
  do {
    count = ::poll(&ended, 1, kEndTimeoutMs);
  } while (count < 0 && errno == EINTR);
  if (count == 0) {
    LOG_WARN("passt: process %d does not end, though its socket is closed", pid_);
  }
}

std::string last_line(int fd) {
  std::string text(kMostWords, '\0');
  std::size_t end_of_text = 0;
  ssize_t size = 0;
  while (end_of_text < text.size() &&
         (size = ::read(fd, &text[end_of_text], text.size() - end_of_text)) > 0) {
    end_of_text += static_cast<std::size_t>(size);
  }
  text.resize(end_of_text);
  std::string last;
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = std::min(text.find('\n', start), text.size());
    const std::string line = text.substr(start, end - start);
    // Without a system log it says so for each message.
    if (!line.empty() && !line.ends_with("to syslog")) {
      last = line;
    }
    start = end + 1;
  }
  return last;
}

}  // namespace mayfly
