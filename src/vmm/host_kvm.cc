#include "vmm/host_kvm.h"

#include <unistd.h>

#include <csignal>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/thread_name.h"
#include "vmm/arch.h"

namespace mayfly {
namespace {

Result<OpenKvm> open_with_vm() {
  MAYFLY_TRY_ASSIGN(Kvm kvm, Kvm::open());
  MAYFLY_TRY_ASSIGN(Vm vm, kvm.create_empty_vm());
  return OpenKvm{std::move(kvm), std::move(vm)};
}

// By a descriptor of its own: the other's owner may close it meanwhile.
Result<AskedKvm> ask() {
  MAYFLY_TRY_ASSIGN(Kvm kvm, Kvm::open());
  MAYFLY_TRY_ASSIGN(auto supported, supported_processor(kvm));
  return AskedKvm{std::move(kvm), std::move(supported)};
}

template <typename T>
void give_timed(std::string_view name, Result<T> (*make)(), BootTrace::Phase& phase,
                Handover<Result<T>>& place) {
  const auto begin = BootTrace::Clock::now();
  auto made = make();
  phase = {name, begin, BootTrace::Clock::now(), ::gettid()};
  place.give(std::move(made));
}

// What `place` holds, where it still does.
template <typename T>
std::optional<T> take_once(Handover<Result<T>>& place, bool& is_there, const BootTrace::Phase& phase,
                           BootTrace* trace) {
  if (!std::exchange(is_there, false)) {
    return std::nullopt;
  }
  Result<T> found = place.take();
  if (trace != nullptr) {
    trace->phase(phase);
  }
  return found ? std::optional<T>(std::move(*found)) : std::nullopt;
}

// It takes no signals. False where none is to be had.
bool start_thread(std::thread& thread, const char* name, std::function<void()> work) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // which the thread inherits
  try {
    thread = std::thread([name, work = std::move(work)]() noexcept {
      set_thread_name(name);
      work();
    });
  } catch (const std::system_error&) {
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread.joinable();
}

}  // namespace

void HostKvm::start(Purpose purpose) {
  if (std::exchange(started_, true)) {
    return;
  }
  if (purpose == Purpose::kTake) {
    want({});
  }
  // Without a thread there is nothing ahead; the vCPUs' own will say so.
  opened_is_there_ = start_thread(thread_, "mayfly_kvm", [this] {
    give_timed("make a VM ahead", open_with_vm, opening_, opened_);
    if (const Job job = wanted_.take()) {
      do_job(job);
    }
  });
  supported_is_there_ = opened_is_there_ && start_thread(asking_thread_, "mayfly_cpuid", [this] {
                          give_timed("ask for CPUID", ask, asking_, supported_);
                        });
}

HostKvm::~HostKvm() {
  end();
}

void HostKvm::end() {
  want({});
  for (std::thread* const thread : {&thread_, &using_thread_, &asking_thread_}) {
    if (thread->joinable()) {
      thread->join();
    }
  }
  static_cast<void>(take(nullptr));
  static_cast<void>(take_supported(nullptr));
}

void HostKvm::want(Job job) {
  if (!std::exchange(is_wanted_, true)) {
    wanted_.give(std::move(job));
  }
}

bool HostKvm::use(Job job) {
  if (!opened_is_there_) {
    return false;
  }
  if (!is_wanted_) {
    want(std::move(job));
  } else if (!start_thread(using_thread_, "mayfly_kvm", [this, job = std::move(job)] { do_job(job); })) {
    return false;
  }
  opened_is_there_ = false;
  return true;
}

void HostKvm::do_job(const Job& job) noexcept {
  Result<OpenKvm> opened = opened_.take();
  job(opened ? std::optional(std::move(*opened)) : std::nullopt, opening_);
}

std::optional<OpenKvm> HostKvm::take(BootTrace* trace) {
  if (opened_is_there_) {
    want({});
  }
  return take_once(opened_, opened_is_there_, opening_, trace);
}

std::optional<AskedKvm> HostKvm::take_supported(BootTrace* trace) {
  return take_once(supported_, supported_is_there_, asking_, trace);
}

}  // namespace mayfly
