#include "mayfly/template.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/clone_call.h"
#include "api/http/http_server.h"
#include "base/error.h"
#include "base/exit_code.h"
#include "base/log.h"
#include "base/text.h"
#include "base/unique_fd.h"
#include "mayfly/confinement.h"
#include "mayfly/monitor.h"
#include "mayfly/process_title.h"
#include "mayfly/version.h"
#include "vmm/clone_source.h"

namespace mayfly {
namespace {

using Clock = std::chrono::steady_clock;

// A place takes a host that is busy a tenth of a second; beyond this something is wrong.
// So many that wait end before they are born until none is made ahead any more: something is wrong with all.
constexpr unsigned kMostUnborn = 64;
constexpr std::chrono::seconds kPatience{10};
// Clones of one call that are being born at a time.
constexpr std::size_t kAtATime = 4;
constexpr std::size_t kMaxAnswer = 4096;
// What a child says: one of these, and for kFailed why.
constexpr char kReady = 'R';
constexpr char kBorn = 'B';
constexpr char kFailed = 'F';

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

void say(const UniqueFd& channel, char what, std::string_view text = {}) {
  std::string message(1, what);
  message.append(text.substr(0, kMaxAnswer - 1));
  // Not by send(2), which no filter of a monitor's has to allow. A reader that has gone misses nothing.
  if (::write(channel.get(), message.data(), message.size()) < 0 && errno != EPIPE) {
    LOG_WARN_LIMITED("%s", Error::from_errno(errno, "write to a clone's channel").message().c_str());
  }
}

// The other end's next message, or nothing where it has gone.
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

// A process that waits to become a clone, or has just become one.
struct Child {
  pid_t pid = 0;
  UniqueFd channel;
};

// Its message within the time. Errors: kNotFound where it ended, kIo where it does not answer, or what it
// said it failed by.
Result<char> hear_child(const Child& child, Clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd ready{.fd = child.channel.get(), .events = POLLIN, .revents = 0};
    const int count =
        ::poll(&ready, 1, static_cast<int>(std::max(left, std::chrono::milliseconds(0)).count()));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count == 0) {
      return fail(ErrorCode::kIo, "a clone's process does not answer");
    }
    const std::string message = hear(child.channel);
    if (message.empty()) {
      return fail(ErrorCode::kNotFound, "a clone's process has ended before its guest ran");
    }
    if (message.front() == kFailed) {
      return fail(ErrorCode::kUnsupported, message.substr(1));
    }
    return message.front();
  }
}

class Template {
 public:
  Template(const Options& options, CloneSource source)
      : options_(options),
        source_(std::move(source)),
        socket_folder_(options.api_socket->substr(0, options.api_socket->rfind('/') + 1)) {}
  Template(const Template&) = delete;
  Template& operator=(const Template&) = delete;
  ~Template() = default;

  OrFailure<void> serve() {
    kept_ = open_descriptors();
    prepare_process_arguments();
    MAYFLY_TRY(set_handlers(on_signal));
    MAYFLY_TRY_ASSIGN(auto listener,
                      api::UnixListener::bind(*options_.api_socket).map_error(blame_flag("--api-sock")));
    MAYFLY_TRY_ASSIGN(const auto server,
                      api::HttpServer::create(
                          std::move(listener), {.max_body_bytes = options_.max_body_bytes}, "Mayfly template",
                          [this](const api::HttpRequest& request) { return answer(request); }));
    g_server = server.get();
    LOG_INFO("template %s at %s", options_.id.c_str(), options_.api_socket->c_str());
    Result<void> served;
    while (served && !g_ends) {
      reap();
      // Where none can be made, who asks for a clone is told why.
      if (ended_unborn_ < kMostUnborn) {
        fill(options_.clones.pool);
      }
      served = server->run();
    }
    g_server = nullptr;
    pool_.clear();  // the channels' ends: whoever waits at one ends
    server->close();
    MAYFLY_TRY(served);
    return {};
  }

 private:
  void reap() {
    for (;;) {
      int status = 0;
      const pid_t pid = ::waitpid(-1, &status, WNOHANG);
      if (pid <= 0) {
        return;
      }
      if (const auto found = living_.find(pid); found != living_.end()) {
        ids_.erase(found->second);
        living_.erase(found);
      }
      if (const auto unborn = std::ranges::find(pool_, pid, &Child::pid); unborn != pool_.end()) {
        ++ended_unborn_;
        LOG_WARN_LIMITED("a process that waited to be a clone has ended");
        if (ended_unborn_ == kMostUnborn) {
          LOG_WARN("%u of them have ended: no more are made ahead until a clone is born", kMostUnborn);
        }
        pool_.erase(unborn);
      }
    }
  }

  void fill(std::size_t wanted) {
    while (pool_.size() < wanted) {
      if (const auto made = fork_child(); !made) {
        LOG_WARN_LIMITED("%s", made.error().message().c_str());
        return;
      }
    }
  }

  Result<void> fork_child() {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
      return fail_errno(errno, "make a channel to a clone's process");
    }
    UniqueFd ours(ends[0]);
    UniqueFd theirs(ends[1]);
    const pid_t pid = [this, &theirs] {
      const SignalsHeld held;  // the child must not handle any as the template would
      const pid_t forked = ::fork();
      if (forked == 0) {
        become_child(theirs);
      }
      return forked;
    }();
    if (pid < 0) {
      return fail_errno(errno, "make a clone's process");
    }
    if (pid == 0) {
      wait_for_birth(std::move(theirs));
    }
    pool_.push_back({.pid = pid, .channel = std::move(ours)});
    return {};
  }

  // Leaves what is the template's alone: its descriptors, its signals, its terminal, whose keys are not meant
  // for a clone.
  void become_child(const UniqueFd& channel) const {
    g_server = nullptr;
    static_cast<void>(set_handlers(SIG_DFL));  // which fails for no valid signal
    ::signal(SIGCHLD, SIG_IGN);                // as any monitor does
    std::vector<int> kept = kept_;
    kept.push_back(channel.get());
    std::ranges::sort(kept);
    static_cast<void>(close_all_but(kept));  // which main() has found to work
    ::setsid();
    // Who reads what the template prints must not wait for a clone's end. The log alone is shared.
    if (const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC)); null) {
      ::dup2(null.get(), STDIN_FILENO);
      ::dup2(null.get(), STDOUT_FILENO);
    }
  }

  // The child's life. Nothing of the template's is destroyed in it: its memory is shared until it is
  // written.
  [[noreturn]] void wait_for_birth(UniqueFd channel) {
    auto place = std::move(source_).make_place();
    if (!place) {
      say(channel, kFailed, place.error().message());
      ::_exit(static_cast<int>(ExitCode::kError));
    }
    const ExitCode code = live(std::move(*place), std::move(channel));
    ::_exit(static_cast<int>(code));
  }

  // From a place to the end of a clone, told by its log.
  ExitCode live(ClonePlace place, UniqueFd channel) {
    Options options = options_;
    const MachineConfig machine = place.config.machine;
    const auto outcome = run_clone(options, std::move(place),
                                   {.for_birth = [&]() -> OrFailure<CloneBirth> {
                                      say(channel, kReady);
                                      const std::string order = hear(channel);
                                      if (order.empty()) {
                                        ::_exit(static_cast<int>(ExitCode::kOk));  // the template has ended
                                      }
                                      return read_order(order, machine);
                                    },
                                    .on_born =
                                        [&] {
                                          say(channel, kBorn);
                                          channel.reset();
                                        }});
    if (!outcome) {
      if (channel) {
        say(channel, kFailed, outcome.error().message);
      } else {
        LOG_ERROR("%s", outcome.error().message.c_str());
      }
      return ExitCode::kError;
    }
    const bool well = exit_code_of(outcome->kind) == 0;
    if (well) {
      LOG_INFO("%s: %s", name_of(outcome->kind), outcome->detail.c_str());
    } else {
      LOG_ERROR("the microVM failed: %s: %s", name_of(outcome->kind), outcome->detail.c_str());
    }
    return well ? ExitCode::kOk : ExitCode::kError;
  }

  OrFailure<CloneBirth> read_order(const std::string& order, const MachineConfig& machine) const {
    MAYFLY_TRY_ASSIGN(api::CloneRequest told, api::parse_clone_request(order));
    CloneBirth birth{.id = told.id.value_or(""),
                     .load = std::move(told.load),
                     .api_socket = std::move(told.api_socket),
                     .serial_path = std::move(told.serial_path)};
    MAYFLY_TRY(set_log_instance_id(birth.id));
    show_as_clone(birth, machine);
    return birth;
  }

  void show_as_clone(const CloneBirth& birth, const MachineConfig& machine) const {
    std::vector<std::string> arguments = {"mayfly",   std::string(kCloneMark) + options_.id + "]",
                                          "--id",     birth.id,
                                          "--cpus",   std::to_string(machine.vcpu_count),
                                          "--memory", std::to_string(machine.mem_size_mib) + "M"};
    if (birth.api_socket) {
      arguments.insert(arguments.end(), {"--api-sock", *birth.api_socket});
    }
    if (!set_process_arguments(arguments)) {
      LOG_WARN_LIMITED("a clone is not listed by 'mayfly ps': its arguments cannot be set");
    }
  }

  api::HttpResponse answer(const api::HttpRequest& request) {
    const auto refuse = [](const std::string& message) {
      return api::HttpResponse{.status = 400, .body = api::fault_answer(message)};
    };
    if (request.path == "/" && request.method == "GET") {
      reap();
      return {.body = api::template_answer(options_.id, monitor_version(), pool_.size(), living_.size())};
    }
    if (request.path != "/clone") {
      return refuse("there is no " + request.path + " in a template's API: GET / and POST /clone");
    }
    if (request.method != "POST") {
      return refuse(request.method + " is not possible on /clone; POST is");
    }
    auto wanted = api::parse_clone_request(request.body);
    if (!wanted) {
      return refuse(wanted.error().message());
    }
    if (options_.clones.no_api) {
      if (wanted->api_socket) {
        return refuse("the template's clones have no control API (--no-clone-api)");
      }
      wanted->api = false;
    }
    const auto born = give_birth(*wanted);
    // The pool is filled up once the answer is out.
    if (api::HttpServer* const server = g_server) {
      server->stop();
    }
    if (!born) {
      LOG_INFO_LIMITED("POST /clone refused: %s", born.error().message().c_str());
      return refuse(born.error().message());
    }
    return {.body = api::clones_answer(*born)};
  }

  struct Birth {
    Child child;
    api::BornClone clone;
  };

  // All, or none.
  Result<std::vector<api::BornClone>> give_birth(const api::CloneRequest& request) {
    reap();
    std::vector<Birth> births;
    births.reserve(request.count);
    auto done = bear_all(request, births);
    if (!done) {
      for (Birth& birth : births) {
        end(birth.child);
      }
      return tl::make_unexpected(done.error());
    }
    ended_unborn_ = 0;
    std::vector<api::BornClone> clones;
    for (Birth& birth : births) {
      ids_.insert(birth.clone.id);
      living_.emplace(birth.child.pid, birth.clone.id);
      clones.push_back(std::move(birth.clone));
    }
    return clones;
  }

  Result<void> bear_all(const api::CloneRequest& request, std::vector<Birth>& births) {
    std::size_t heard = 0;
    for (std::uint32_t index = 0; index < request.count; ++index) {
      fill(std::min<std::size_t>(options_.clones.pool, request.count - index));
      MAYFLY_TRY(send_order(request, births));
      if (births.size() - heard == kAtATime) {
        MAYFLY_TRY(hear_birth(births[heard]));
        ++heard;
      }
    }
    for (; heard < births.size(); ++heard) {
      MAYFLY_TRY(hear_birth(births[heard]));
    }
    return {};
  }

  Result<void> send_order(const api::CloneRequest& request, std::vector<Birth>& births) {
    const std::uint64_t number = ++last_number_;
    api::BornClone clone{
        .id = request.id.value_or(request.id_prefix.value_or(options_.id) + "-" + std::to_string(number))};
    if (ids_.contains(clone.id)) {
      return fail(ErrorCode::kBusy, "the id \"" + clone.id + "\" is taken: a clone that lives has it");
    }
    MAYFLY_TRY_ASSIGN(const std::string order, api::clone_order(request, clone.id, number, socket_folder_));
    clone.socket = api::clone_socket(request, clone.id, number, socket_folder_);
    MAYFLY_TRY_ASSIGN(Child child, take_ready());
    clone.pid = child.pid;
    const bool sent = ::write(child.channel.get(), order.data(), order.size()) >= 0;
    const int error = errno;
    births.push_back({.child = std::move(child), .clone = std::move(clone)});
    return sent ? Result<void>() : fail_errno(error, "tell a clone's process who it is");
  }

  // The oldest of the pool that lives, with a place made.
  Result<Child> take_ready() {
    for (std::size_t attempts = pool_.size() + 1;; --attempts) {
      if (pool_.empty()) {
        MAYFLY_TRY(fork_child());
      }
      Child child = std::move(pool_.front());
      pool_.pop_front();
      const auto heard = hear_child(child, Clock::now() + kPatience);
      if (heard) {
        return child;
      }
      end(child);
      // Whoever was killed while it waited has successors.
      if (heard.error().code() != ErrorCode::kNotFound || attempts == 1) {
        return tl::make_unexpected(heard.error().within("make a VM ahead"));
      }
    }
  }

  static Result<void> hear_birth(Birth& birth) {
    if (auto heard = hear_child(birth.child, Clock::now() + kPatience); !heard) {
      return tl::make_unexpected(heard.error().within("clone " + birth.clone.id));
    }
    return {};
  }

  // In good order, so that it takes its socket along; by force where it does not listen.
  static void end(Child& child) {
    child.channel.reset();
    ::kill(child.pid, SIGTERM);
    const auto deadline = Clock::now() + kPatience;
    while (::waitpid(child.pid, nullptr, WNOHANG) == 0) {
      if (Clock::now() >= deadline) {
        ::kill(child.pid, SIGKILL);
        ::waitpid(child.pid, nullptr, 0);
        return;
      }
      ::poll(nullptr, 0, 1);
    }
  }

  const Options& options_;
  CloneSource source_;
  const std::string socket_folder_;  // ends in '/', or empty
  std::vector<int> kept_;            // descriptors that are a clone's as well
  std::deque<Child> pool_;           // the oldest first
  unsigned ended_unborn_ = 0;        // of the pool, since a clone was born last
  std::map<pid_t, std::string> living_;
  std::set<std::string> ids_;  // of those
  std::uint64_t last_number_ = 0;
};

}  // namespace

OrFailure<void> run_template(const Options& options) {
  MAYFLY_TRY(choose_filters(options));  // each process has its own; that they can be had is said now
  MAYFLY_TRY_ASSIGN(CloneSource source,
                    CloneSource::open(options.clones.state_path, options.clones.memory_path)
                        .map_error([](const BuildError& error) {
                          return Failure(ExitCode::kBadArguments, error.error.message());
                        }));
  // No program that it or a clone starts gains rights.
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return tl::make_unexpected(Failure(Error::from_errno(errno, "set no_new_privs")));
  }
  return Template(options, std::move(source)).serve();
}

}  // namespace mayfly
