#include "mayfly/template_process.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "mayfly/process_title.h"

namespace mayfly {
namespace {

constexpr std::array kHandled = {SIGTERM, SIGINT, SIGCHLD};

// The server whose run() a signal ends.
std::atomic<api::HttpServer*> g_server = nullptr;
std::atomic<bool> g_ends = false;

void on_signal(int number) {
  if (number != SIGCHLD) {
    g_ends = true;
  }
  if (api::HttpServer* const server = g_server) {
    server->stop();
  }
}

Result<void> set_handlers(void (*handler)(int)) {
  for (const int number : kHandled) {
    struct sigaction action = {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART | (number == SIGCHLD ? SA_NOCLDSTOP : 0);
    if (::sigaction(number, &action, nullptr) != 0) {
      return fail_errno(errno, "install the handler of signal " + std::to_string(number));
    }
  }
  return {};
}
// Keeps them from being handled in the calling thread as long as it lives.
class SignalsHeld {
 public:
  SignalsHeld() {
    sigset_t held;
    ::sigemptyset(&held);
    for (const int number : kHandled) {
      ::sigaddset(&held, number);
    }
    ::pthread_sigmask(SIG_BLOCK, &held, &before_);
  }
  ~SignalsHeld() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;

 private:
  sigset_t before_{};
};

// The descriptors that are open, ascending. Asked one by one: a jail has no /proc, and to read it there would
// be one descriptor more.
std::vector<int> open_descriptors() {
  constexpr rlim_t kMost = 65536;  // a template has a dozen
  rlimit limit{};
  const rlim_t end = ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? std::min(limit.rlim_cur, kMost) : kMost;
  std::vector<int> open;
  for (int fd = 0; fd < static_cast<int>(end); ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) {
      open.push_back(fd);
    }
  }
  return open;
}

}  // namespace

Result<void> TemplateProcess::prepare(std::string name) {
  name_ = std::move(name);
  kept_ = open_descriptors();
  prepare_process_arguments();
  return set_handlers(on_signal);
}

void TemplateProcess::interrupt(api::HttpServer* server) {
  g_server = server;
}

bool TemplateProcess::asked_to_end() {
  return g_ends;
}

pid_t TemplateProcess::fork_away(const UniqueFd* channel) const {
  const SignalsHeld held;  // the child must not handle any as the template would
  const pid_t pid = ::fork();
  if (pid == 0) {
    become_child(channel);
  }
  return pid;
}

// Leaves what is the template's alone: its descriptors, its signals, its terminal, whose keys are not meant
// for a clone.
void TemplateProcess::become_child(const UniqueFd* channel) const {
  g_server = nullptr;
  static_cast<void>(set_handlers(SIG_DFL));  // which fails for no valid signal
  ::signal(SIGCHLD, SIG_IGN);                // as any monitor does
  std::vector<int> kept = kept_;
  if (channel != nullptr) {
    kept.push_back(channel->get());
  }
  std::ranges::sort(kept);
  static_cast<void>(close_all_but(kept));  // which main() has found to work
  // Who cannot be shown as what it is is taken for the template once that has ended; it is asked nothing.
  static_cast<void>(set_process_arguments({"mayfly", std::string(kForkMark) + name_ + "]"}));
  ::setsid();
  // Who reads what the template prints must not wait for a clone's end. The log alone is shared.
  if (const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC)); null) {
    ::dup2(null.get(), STDIN_FILENO);
    ::dup2(null.get(), STDOUT_FILENO);
  }
}

}  // namespace mayfly
