#include "mayfly/monitor.h"

#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <ctime>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "api/api_server.h"
#include "api/event_json.h"
#include "api/loop_gate.h"
#include "api/router.h"
#include "base/clock.h"
#include "base/exit_code.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/mutex.h"
#include "base/worker_thread.h"
#include "devices/serial/console.h"
#include "devices/serial/terminal_guard.h"
#include "event/event_loop.h"
#include "event/signal_watch.h"
#include "kvm/host_kind.h"
#include "mayfly/confinement.h"
#include "mayfly/handler_guard.h"
#include "mayfly/version.h"
#include "seccomp/filters.h"
#include "vmm/micro_vm.h"

namespace mayfly {
namespace {

constexpr std::chrono::seconds kMetricsInterval{60};
// After which the guest's boot no longer shares the process's memory map, which every fault on fresh guest
// memory needs, with what tidies it.
constexpr std::chrono::milliseconds kStartIsOver{250};
// After which a guest that has printed nothing is worth a look at its host.
constexpr std::chrono::seconds kSilence{3};

// How the microVM ended: the first of all that may end it decides. Thread-safe.
class FirstOutcome {
 public:
  void set(Outcome outcome) {
    const MutexLock lock(mutex_);
    if (!outcome_) {
      outcome_ = std::move(outcome);
    }
  }
  bool is_set() const {
    const MutexLock lock(mutex_);
    return outcome_.has_value();
  }
  // After something was set.
  Outcome get() const {
    const MutexLock lock(mutex_);
    return *outcome_;
  }

 private:
  mutable Mutex mutex_;  // a leaf: no other lock is taken under it
  std::optional<Outcome> outcome_ MAYFLY_GUARDED_BY(mutex_);
};

// After the shell had the terminal, or when it gives it to this job for the first time.
void refresh(TerminalGuard& terminal) {
  if (const auto raw = terminal.refresh(); !raw) {
    LOG_WARN_LIMITED("%s", raw.error().message().c_str());
  }
}

void flush_metrics() {
  if (const auto flushed = metrics().flush(); !flushed) {
    LOG_WARN_LIMITED("%s", flushed.error().message().c_str());
  }
}

// Gives back the pages of the program's own code and constants: most of what the start has touched is not
// needed again, and what is gets mapped anew from the page cache at its next use.
//
// A page fault there maps the 64 KiB around it as well, as far as the mapping goes (the kernel's
// fault-around), and what runs once the guest does is strewn over the code: nearly all of it would be back at
// once. So the code's mapping is cut into stripes, by an advice that means nothing to a file's pages, on
// every other of them. Only hints: refused, they cost nothing but memory.
void release_startup_pages() {
  static constexpr std::uint64_t kStripe = std::uint64_t{32} << 10;  // bytes
  struct Segment {
    std::uint64_t begin;
    std::uint64_t end;
    bool is_code;
  };
  std::vector<Segment> segments;
  const auto collect = [](dl_phdr_info* program, std::size_t /*size*/, void* result) {
    const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    for (std::size_t i = 0; i < program->dlpi_phnum; ++i) {
      const ElfW(Phdr)& header = program->dlpi_phdr[i];
      // What was relocated lies in a writable segment, also where it is read-only by now: it has no copy in
      // the file.
      if (header.p_type == PT_LOAD && (header.p_flags & PF_W) == 0) {
        const std::uint64_t begin = (program->dlpi_addr + header.p_vaddr) & ~(page - 1);
        static_cast<std::vector<Segment>*>(result)->push_back(
            {begin, program->dlpi_addr + header.p_vaddr + header.p_memsz, (header.p_flags & PF_X) != 0});
      }
    }
    return 1;  // the program comes first; the libraries of a build that has some stay as they are
  };
  ::dl_iterate_phdr(collect, &segments);
  for (const Segment& segment : segments) {
    for (std::uint64_t stripe = segment.begin; segment.is_code && stripe < segment.end;
         stripe += 2 * kStripe) {
      // SAFETY: an address inside the segment; core dumps hold no pages of a file that was not written to.
      ::madvise(reinterpret_cast<void*>(stripe), std::min(kStripe, segment.end - stripe), MADV_DONTDUMP);
    }
    // SAFETY: a private mapping of the program's file that nothing has written to: its contents stay the
    // same.
    ::madvise(reinterpret_cast<void*>(segment.begin), segment.end - segment.begin, MADV_DONTNEED);
  }
}

// Gives back what a clone's birth has used of heap and stack: a clone shares the program's pages with all
// others, and what it has to itself is mostly this.
void release_birth_pages() {
  ::malloc_trim(0);
  // The stack below what is in use, and what the next few calls need, holds nothing.
  constexpr std::uint64_t kInUse = 8192;      // bytes
  constexpr std::uint64_t kDeepest = 131072;  // the deepest frames of a birth end before
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  // SAFETY: an address as a number.
  const auto here = reinterpret_cast<std::uint64_t>(__builtin_frame_address(0));
  const std::uint64_t end = (here - kInUse) & ~(page - 1);
  // SAFETY: the stack of the process's first thread. It grows down, and the kernel keeps 1 MiB free below it:
  // as far as it has not grown yet, there is nothing.
  ::madvise(reinterpret_cast<void*>(end - kDeepest), kDeepest, MADV_DONTNEED);
}

// Where a thread stands in the way of an orderly end. The API's socket is left, as by a kill: the filters let
// only the API's own thread remove it.
[[noreturn]] void end_at_once(const char* why) {
  LOG_ERROR("ends at once: %s", why);
  restore_terminal();
  ::_exit(static_cast<int>(ExitCode::kError));
}

// A monitor that was killed a moment ago may hold its image for a little longer: the kernel takes an io_uring
// and the files registered with it apart in the background (30 ms were seen). Who starts by a configuration
// file cannot ask again; who calls the API can, and is told at once.
Result<void> put_drive(MicroVm& vm, const BlockDeviceConfig& drive) {
  constexpr timespec kPause{.tv_sec = 0, .tv_nsec = 5'000'000};
  constexpr int kAttempts = 60;
  for (int attempt = 1;; ++attempt) {
    auto put = vm.put_drive(drive);
    if (put || put.error().code() != ErrorCode::kBusy || attempt == kAttempts) {
      return put;
    }
    ::nanosleep(&kPause, nullptr);
  }
}

// Everything of the configuration, then the start.
OrFailure<void> start_at_once(MicroVm& vm, const VmConfig& config, const Options& options) {
  const auto wrong = [&options](const char* section) {
    return [&options, section](const Error& error) {
      const bool is_file = options.config_file.has_value();
      return with_code(ExitCode::kBadConfiguration)(is_file ? error.within(section_name(options, section))
                                                            : error);
    };
  };
  // Before anything is put: a second drive of an id would take the place of the first.
  MAYFLY_TRY(config.validate_devices().map_error(wrong("")));
  MAYFLY_TRY(vm.put_machine_config(config.machine).map_error(wrong("machine-config")));
  MAYFLY_TRY(vm.put_cpu_template(config.cpu_template).map_error(wrong("")));
  MAYFLY_TRY(vm.put_boot_source(config.boot_source).map_error(wrong("boot-source")));
  for (const BlockDeviceConfig& drive : config.drives) {
    MAYFLY_TRY(put_drive(vm, drive).map_error(wrong("drives")));
  }
  for (const NetDeviceConfig& network : config.networks) {
    MAYFLY_TRY(vm.put_network(network).map_error(wrong("network-interfaces")));
  }
  if (config.mmds) {
    MAYFLY_TRY(vm.put_mmds_config(*config.mmds).map_error(wrong("mmds-config")));
  }
  MAYFLY_TRY(vm.start().map_error([&wrong](const BuildError& error) {
    return error.fault == BuildError::Fault::kConfiguration ? wrong("")(error.error) : Failure(error.error);
  }));
  return {};
}

// What the start of a guest sets off, whoever starts it.
class AfterStart {
 public:
  // `release` is what gives back memory that only the start needed.
  static Result<AfterStart> create(EventLoop& loop, const SerialMetrics& serial, void (*release)()) {
    AfterStart after;
    MAYFLY_TRY_ASSIGN(after.release_, loop.make_timer(release));
    MAYFLY_TRY_ASSIGN(after.silence_, loop.make_timer([&serial] {
      if (serial.write_count.load() == 0) {
        LOG_WARN(
            "the guest has printed nothing yet: this host's KVM works without hardware virtualization, and "
            "Linux may not boot on it; see 'mayfly doctor'");
      }
    }));
    return after;
  }

  Result<void> arm(bool has_console) {
    MAYFLY_TRY(release_->start(kStartIsOver));
    if (!has_console) {
      return {};  // nor anybody who waits for a first line
    }
    // Looked at now: the filter of a microVM that runs allows no look around on the host.
    return lacks_hardware_modules() ? silence_->start(kSilence) : Result<void>();
  }

 private:
  std::unique_ptr<EventRegistrar::Timer> release_;
  std::unique_ptr<EventRegistrar::Timer> silence_;
};

// The control API while it serves.
class Api {
 public:
  // All are borrowed. `asked_to_end` as LoopGate's.
  Api(const Plan& plan, const std::optional<Filters>& filters, EventLoop& loop,
      std::function<bool()> asked_to_end)
      : plan_(plan), filters_(filters), gate_(loop, std::move(asked_to_end)) {}
  Api(const Api&) = delete;
  Api& operator=(const Api&) = delete;
  ~Api() { stop(); }

  // The API's thread, which is confined while the rest gets ready. With open() it is known whom it serves, as
  // whose, and callers find the socket; with serve() it begins. `vm` is borrowed, and used by tasks of the
  // loop only.
  Result<void> start(std::size_t max_body_bytes) {
    api::ApiServerConfig config{.confine = confinement(filters_, FilteredThread::kApi)};
    config.limits.max_body_bytes = max_body_bytes;
    MAYFLY_TRY_ASSIGN(server_, api::ApiServer::start(config, [this](const api::HttpRequest& request) {
                        return router_->handle(request);
                      }));
    return {};
  }
  Result<void> open(MicroVm& vm, const std::string& instance_id, const std::string& socket) {
    instance_id_ = instance_id;
    MAYFLY_TRY(start_files());
    router_.emplace(api::Identity{.instance_id = instance_id_, .monitor_version = monitor_version()}, gate_,
                    *files_, vm, plan_.logger, plan_.metrics);
    MAYFLY_TRY_ASSIGN(listener_, api::UnixListener::bind(socket));  // last: who finds it is answered
    return {};
  }
  Result<void> serve() {
    server_->listen(*std::exchange(listener_, std::nullopt));  // which it does once it is confined
    return server_->wait_confined();
  }
  // The thread that writes snapshots, which no call needs before there is a guest. open() starts it where
  // nobody has.
  Result<void> start_files() {
    if (!files_) {
      MAYFLY_TRY_ASSIGN(
          files_, WorkerThread::start("mayfly_snapshot", confinement(filters_, FilteredThread::kSnapshot)));
    }
    return {};
  }
  // Whoever starts a guest waits for both threads.
  Result<void> wait_confined() {
    MAYFLY_TRY(server_->wait_confined());
    return files_ ? files_->wait_confined() : Result<void>();
  }

  // Any thread, from start() to stop().
  void publish(const MicroVmEvent& event) {
    if (server_) {
      server_->publish(api::event_name(event.kind),
                       api::event_json(event, instance_id_, api::HttpServer::kMaxEventBytes));
    }
  }

  // Calls are refused from now on. By the thread that ran the loop.
  void refuse_calls() { gate_.close(); }

  void stop() {
    gate_.close();
    if (server_ && listener_) {
      static_cast<void>(serve());  // its thread removes the socket, which this one may no longer do
    }
    server_.reset();
  }

 private:
  std::string instance_id_;
  const Plan& plan_;
  const std::optional<Filters>& filters_;
  api::LoopGate gate_;
  std::unique_ptr<WorkerThread> files_;
  std::optional<api::Router> router_;
  std::optional<api::UnixListener> listener_;  // from open() to serve()
  std::unique_ptr<api::ApiServer> server_;
};

// What the ways to run a microVM differ in.
struct Way {
  ConsoleConfig console{};
  bool has_api = false;
  Ahead* ahead = nullptr;  // null: the machine was made ahead
  void (*release)() = release_startup_pages;
  // Opens the control API, which is null where there is to be none, and brings the microVM up, or leaves that
  // to the API's callers.
  std::function<OrFailure<void>(MicroVm&, Api*)> begin;
};

// The thread that owns the microVM, and all that is around it. What its members need stands before them.
class Monitor {
 public:
  // All but `way` are borrowed.
  Monitor(const Options& options, const Plan& plan, const std::optional<Filters>& filters, BootTrace* trace,
          Way way)
      : options_(options),
        plan_(plan),
        filters_(filters),
        trace_(trace),
        way_(std::move(way)),
        has_console_(way_.console.input >= 0) {}
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;
  ~Monitor() = default;

  // Once. In this order: threads inherit the signals' mask, whoever waits for the API waits for what comes
  // before its thread, and filters take away what the steps before them need.
  OrFailure<Outcome> run() {
    MAYFLY_TRY_ASSIGN(loop_, EventLoop::create());
    MAYFLY_TRY(watch_signals());
    MAYFLY_TRY(start_api());
    flush_metrics();
    MAYFLY_TRY(make_vm());
    note_outputs();
    MAYFLY_TRY(put_metadata());
    MAYFLY_TRY(start_metrics_timer());
    MAYFLY_TRY(way_.begin(*vm_, api_ ? &*api_ : nullptr));
    MAYFLY_TRY(loop_->run());
    return end();
  }

 private:
  void end_with(Outcome how) {
    outcome_.set(std::move(how));
    loop_->stop();
  }
  void take_foreground() {
    if (terminal_) {
      refresh(*terminal_);
    }
  }

  // Before any thread is started that takes signals: they inherit the signal mask.
  Result<void> watch_signals() {
    static constexpr std::array kEnds = {SIGTERM, SIGINT};
    MAYFLY_TRY_ASSIGN(ends_, SignalWatch::create(*loop_, kEnds, [this](int number) {
                        end_with({OutcomeKind::kStopped, number == SIGTERM ? "SIGTERM" : "SIGINT"});
                      }));
    static constexpr std::array kGoesOn = {SIGCONT};
    MAYFLY_TRY_ASSIGN(goes_on_, SignalWatch::create(*loop_, kGoesOn, [this](int) { take_foreground(); }));
    return install_vcpu_kick_handler();
  }

  Result<void> start_api() {
    if (!way_.has_api) {
      return {};
    }
    api_.emplace(plan_, filters_, *loop_, [this] { return outcome_.is_set() || ends_->pending(); });
    return api_->start(options_.max_body_bytes);
  }

  Result<void> make_vm() {
    MAYFLY_TRY_ASSIGN(after_start_, AfterStart::create(*loop_, serial_metrics_, way_.release));
    way_.console.on_quit = [this] { end_with({OutcomeKind::kStopped, "Ctrl-A x"}); };
    way_.console.on_foreground = [this] { take_foreground(); };
    vm_.emplace(MicroVmSurroundings{
        .registrar = *loop_,
        .serial_metrics = serial_metrics_,
        .trace = trace_,
        .console = std::move(way_.console),
        .on_outcome = [this](Outcome how) { end_with(std::move(how)); },
        .before_start = [this] { return prepare_start(); },
        .start_failed = [this] { forget_start(); },
        .confine_vcpu = confinement(filters_, FilteredThread::kVcpu),
        .confine_owner = [this] { return confine_owner(); },
        .confine_side = confinement(filters_, FilteredThread::kSnapshot),
        .on_page_handler =
            [this](UniqueFd connection, const UniqueFd& userfault, const GuestMemory& memory) {
              return guard_handler(std::move(connection), userfault, memory);
            },
        .expect_pages_brought = [this] { return guard_ ? guard_->finish_load() : Result<void>(); },
        .boot_timer = options_.boot_timer,
        .mmds_size_limit = options_.mmds_size_limit.value_or(options_.max_body_bytes),
        .on_event = way_.has_api ? [this](const MicroVmEvent& event) { api_->publish(event); }
                                 : std::function<void(const MicroVmEvent&)>(),
        .snapshots = way_.has_api,
        .host_kvm = way_.ahead != nullptr ? &way_.ahead->host_kvm : nullptr,
        .snapshot = way_.ahead != nullptr && way_.ahead->snapshot ? &*way_.ahead->snapshot : nullptr});
    return {};
  }

  // The guest is about to run.
  Result<void> prepare_start() {
    if (has_console_) {
      MAYFLY_TRY_ASSIGN(terminal_, TerminalGuard::enter(STDIN_FILENO));
    }
    const bool boots = options_.subcommand != Subcommand::kRestore;  // and so has something to print
    return after_start_->arm(boots && has_console_);
  }
  void forget_start() {
    terminal_.reset();
    guard_.reset();
  }

  Result<void> confine_owner() {
    MAYFLY_TRY(api_ ? api_->wait_confined() : Result<void>());
    return filters_ ? filters_->confine(FilteredThread::kMonitor) : Result<void>();
  }

  Result<void> guard_handler(UniqueFd connection, const UniqueFd& userfault, const GuestMemory& memory) {
    guard_.reset();
    HandlerGuard::Calls calls{
        .end_with = [this](Outcome how) { end_with(std::move(how)); },
        .end_at_once =
            [] { end_at_once("guest memory is missing, which the page fault handler does not bring"); },
        .confine = confinement(filters_, FilteredThread::kGuard)};
    MAYFLY_TRY_ASSIGN(guard_,
                      HandlerGuard::start(userfault, memory, std::move(connection), std::move(calls)));
    return {};
  }

  // Of this process, so that the microVM takes none of them for something else.
  void note_outputs() {
    const auto note = [this](const char* role, const std::optional<std::string>& path) {
      if (path) {
        vm_->note_output(role, *path);
      }
    };
    note(api::kLogRole, options_.log.path ? options_.log.path
                        : plan_.logger    ? plan_.logger->log_path
                                          : std::nullopt);
    note(api::kMetricsRole, options_.metrics_path ? options_.metrics_path
                            : plan_.metrics       ? std::optional(plan_.metrics->metrics_path)
                                                  : std::nullopt);
    note("the boot trace", options_.boot_trace);
  }

  OrFailure<void> put_metadata() {
    if (plan_.metadata) {
      const std::string flag = "--metadata " + options_.metadata.value_or("");
      MAYFLY_TRY(vm_->metadata()->put(*plan_.metadata).map_error(blame_flag(flag.c_str())));
    }
    return {};
  }

  Result<void> start_metrics_timer() {
    MAYFLY_TRY_ASSIGN(metrics_timer_, loop_->make_timer([this] {
      vm_->collect_counts();
      flush_metrics();
      if (const auto started = metrics_timer_->start(kMetricsInterval); !started) {
        LOG_ERROR("metrics: %s", started.error().message().c_str());
      }
    }));
    return metrics_timer_->start(kMetricsInterval);
  }

  // After the loop: all goes, and then it is told how it ended.
  OrFailure<Outcome> end() {
    if (guard_) {
      guard_->expect_end();
    }
    if (api_) {
      api_->refuse_calls();
    }
    if (const auto stopped = vm_->stop(); !stopped) {
      // A vCPU's thread still uses what an orderly end would take down, the API's events among it.
      end_at_once(stopped.error().message().c_str());
    }
    vm_->flush_console();
    terminal_.reset();
    vm_->collect_counts();
    flush_metrics();
    if (api_) {
      api_->publish(
          {.kind = MicroVmEvent::Kind::kEnded, .time_us = realtime_ns() / 1000, .outcome = outcome_.get()});
      api_->stop();
    }
    return outcome_.get();
  }

  const Options& options_;
  const Plan& plan_;
  const std::optional<Filters>& filters_;
  BootTrace* const trace_;
  Way way_;
  const bool has_console_;
  std::unique_ptr<EventLoop> loop_;
  FirstOutcome outcome_;
  // Made only when the guest is about to run: what fails before leaves the terminal alone.
  std::unique_ptr<TerminalGuard> terminal_;
  std::unique_ptr<SignalWatch> ends_;
  std::unique_ptr<SignalWatch> goes_on_;
  std::optional<Api> api_;  // before the microVM, which tells of itself to its very end
  SerialMetrics serial_metrics_;
  std::optional<AfterStart> after_start_;
  std::unique_ptr<HandlerGuard> guard_;
  std::optional<MicroVm> vm_;
  std::unique_ptr<EventRegistrar::Timer> metrics_timer_;
};

}  // namespace

OrFailure<Outcome> run_microvm(const Options& options, const Plan& plan, Ahead& ahead, BootTrace* trace) {
  MAYFLY_TRY_ASSIGN(const std::optional<Filters> filters, choose_filters(options));
  Way way{.has_api = options.api_socket.has_value(),
          .ahead = &ahead,
          .begin = [&](MicroVm& vm, Api* api) -> OrFailure<void> {
            if (api != nullptr) {
              MAYFLY_TRY(api->open(vm, options.id, *options.api_socket).map_error(blame_flag("--api-sock")));
              MAYFLY_TRY(api->serve());
              LOG_INFO("control API at %s%s", options.api_socket->c_str(),
                       begins_at_once(options) ? "" : ": waiting for calls");
            }
            if (!begins_at_once(options)) {
              ahead.host_kvm.start();  // now that the first caller no longer waits for anything else
              return {};
            }
            if (options.subcommand == Subcommand::kRestore) {
              return vm.load_snapshot(options.load).map_error([](const BuildError& error) {
                return error.fault == BuildError::Fault::kConfiguration
                           ? with_code(ExitCode::kBadConfiguration)(error.error)
                           : Failure(error.error);
              });
            }
            return start_at_once(vm, *plan.vm, options);
          }};
  way.console.input = STDIN_FILENO;
  way.console.output = STDOUT_FILENO;
  return Monitor(options, plan, filters, trace, std::move(way)).run();
}

OrFailure<Outcome> run_clone(Options& options, ClonePlace place, const CloneWait& wait) {
  MAYFLY_TRY_ASSIGN(const std::optional<Filters> filters, choose_filters(options));
  Way way{.has_api = !options.clones.no_api,
          .release = release_birth_pages,
          .begin = [&](MicroVm& vm, Api* api) -> OrFailure<void> {
            if (api != nullptr) {
              MAYFLY_TRY(api->start_files());
            }
            MAYFLY_TRY(vm.take_place(std::move(place)));
            MAYFLY_TRY_ASSIGN(const CloneBirth birth, wait.for_birth());
            if (birth.api_socket && api != nullptr) {
              MAYFLY_TRY(api->open(vm, birth.id, *birth.api_socket));
            }
            options.api_socket = birth.api_socket;
            if (birth.serial_path) {
              MAYFLY_TRY(vm.put_serial({.output_path = birth.serial_path, .rate_limiter = {}}));
            }
            MAYFLY_TRY(vm.load_clone(birth.load).map_error([](const BuildError& error) {
              return Failure(error.error);
            }));
            wait.on_born();
            // Whoever calls before waits at the socket; the guest does not wait for this thread's turn.
            if (birth.api_socket && api != nullptr) {
              MAYFLY_TRY(api->serve());
            }
            return {};
          }};
  const Plan plan;
  return Monitor(options, plan, filters, nullptr, std::move(way)).run();
}

}  // namespace mayfly
