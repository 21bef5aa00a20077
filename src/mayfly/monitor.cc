#include "mayfly/monitor.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/exit_code.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/mutex.h"
#include "devices/serial/console.h"
#include "devices/serial/terminal_guard.h"
#include "event/event_loop.h"
#include "event/signal_watch.h"
#include "kvm/host_kind.h"
#include "vmm/machine.h"

namespace mayfly {
namespace {

constexpr std::chrono::seconds kMetricsInterval{60};
// After which the guest's boot no longer shares the process's memory map, which every fault on fresh guest
// memory needs, with what tidies it.
constexpr std::chrono::milliseconds kStartIsOver{250};
// After which a guest that has printed nothing is worth a look at its host.
constexpr std::chrono::seconds kSilence{3};

// Brings what the devices count themselves into the metrics store.
class DeviceCounts {
 public:
  DeviceCounts(const SerialMetrics& serial, const I8042& i8042) : serial_(serial), i8042_(i8042) {}

  void collect() {
    Metrics& store = metrics();
    const I8042Counters keyboard = i8042_.counters();
    bring(keyboard.read_count, store.i8042.read_count);
    bring(keyboard.write_count, store.i8042.write_count);
    bring(keyboard.missed_read_count, store.i8042.missed_read_count);
    bring(keyboard.missed_write_count, store.i8042.missed_write_count);
    bring(keyboard.error_count, store.i8042.error_count);
    bring(keyboard.reset_count, store.i8042.reset_count);
    bring(serial_.error_count, store.uart.error_count);
    bring(serial_.flush_count, store.uart.flush_count);
    bring(serial_.missed_read_count, store.uart.missed_read_count);
    bring(serial_.missed_write_count, store.uart.missed_write_count);
    bring(serial_.read_count, store.uart.read_count);
    bring(serial_.write_count, store.uart.write_count);
    bring(serial_.lost_bytes, store.uart.rate_limiter_dropped_bytes);
    bring(serial_.lost_input_bytes, store.uart.lost_input_bytes);
  }

 private:
  // Nobody else adds to these counters of the store.
  static void bring(std::uint64_t now, Counter& counter) { counter.add(now - counter.value()); }

  const SerialMetrics& serial_;
  const I8042& i8042_;
};

// How the microVM ended: the first of all that may end it decides. Thread-safe.
class FirstOutcome {
 public:
  void set(Outcome outcome) {
    const MutexLock lock(mutex_);
    if (!outcome_) {
      outcome_ = std::move(outcome);
    }
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

Failure failure_of(const BuildError& error) {
  const bool configuration = error.fault == BuildError::Fault::kConfiguration;
  return {configuration ? ExitCode::kBadConfiguration : ExitCode::kError, error.error.message()};
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

}  // namespace

OrFailure<Outcome> run_microvm(const VmConfig& config, BootTrace* trace) {
  MAYFLY_TRY_ASSIGN(const std::unique_ptr<EventLoop> loop, EventLoop::create());

  FirstOutcome outcome;
  const auto end_with = [&](Outcome how) {
    outcome.set(std::move(how));
    loop->stop();
  };

  // The guard is made only when the guest is about to run: what fails before leaves the terminal alone.
  std::unique_ptr<TerminalGuard> terminal;
  // Before any thread is started: they inherit the signal mask.
  static constexpr std::array kSignals = {SIGTERM, SIGINT, SIGCONT};
  MAYFLY_TRY_ASSIGN(const auto signals, SignalWatch::create(*loop, kSignals, [&](int number) {
                      if (number != SIGCONT) {
                        end_with({OutcomeKind::kStopped, number == SIGTERM ? "SIGTERM" : "SIGINT"});
                      } else if (terminal) {
                        refresh(*terminal);
                      }
                    }));
  MAYFLY_TRY(install_vcpu_kick_handler());
  flush_metrics();

  SerialMetrics serial_metrics;
  ConsoleConfig console_config;
  console_config.input = STDIN_FILENO;
  console_config.output = STDOUT_FILENO;
  console_config.on_quit = [&] { end_with({OutcomeKind::kStopped, "Ctrl-A x"}); };
  console_config.on_foreground = [&] {
    if (terminal) {
      refresh(*terminal);
    }
  };
  MAYFLY_TRY_ASSIGN(const std::unique_ptr<Console> console,
                    Console::create(*loop, std::move(console_config), serial_metrics));
  MAYFLY_TRY_ASSIGN(
      const std::unique_ptr<Machine> machine,
      Machine::build(config, {*loop, *console, serial_metrics, trace, end_with}).map_error(failure_of));

  DeviceCounts device_counts(serial_metrics, machine->i8042());
  std::unique_ptr<EventRegistrar::Timer> metrics_timer;
  MAYFLY_TRY_ASSIGN(metrics_timer, loop->make_timer([&] {
    device_counts.collect();
    flush_metrics();
    if (const auto started = metrics_timer->start(kMetricsInterval); !started) {
      LOG_ERROR("metrics: %s", started.error().message().c_str());
    }
  }));
  MAYFLY_TRY(metrics_timer->start(kMetricsInterval));

  MAYFLY_TRY_ASSIGN(terminal, TerminalGuard::enter(STDIN_FILENO));
  MAYFLY_TRY(console->start_input(machine->serial()));
  MAYFLY_TRY(machine->start());
  MAYFLY_TRY_ASSIGN(const auto release_timer, loop->make_timer(release_startup_pages));
  MAYFLY_TRY(release_timer->start(kStartIsOver));
  MAYFLY_TRY_ASSIGN(const auto silence_timer, loop->make_timer([&] {
    if (serial_metrics.write_count.load() == 0 && classify_host(read_host_facts()) == HostKind::kNoHardware) {
      LOG_WARN(
          "the guest has printed nothing yet: this host's KVM works without hardware virtualization, and "
          "Linux may not boot on it; see 'mayfly doctor'");
    }
  }));
  MAYFLY_TRY(silence_timer->start(kSilence));
  LOG_INFO("running: %u vCPUs, %llu MiB of memory", config.machine.vcpu_count,
           static_cast<unsigned long long>(config.machine.mem_size_mib));

  MAYFLY_TRY(loop->run());
  if (const auto stopped = machine->stop(); !stopped) {
    // A vCPU's thread still uses what an orderly end would take down.
    LOG_ERROR("%s", stopped.error().message().c_str());
    restore_terminal();
    ::_exit(static_cast<int>(ExitCode::kError));
  }
  console->stop_input();
  console->flush();
  terminal.reset();
  device_counts.collect();
  flush_metrics();

  return outcome.get();
}

}  // namespace mayfly
