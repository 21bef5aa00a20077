// Work done beside the rest, for its result.
#pragma once

#include <functional>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

namespace mayfly {

// Does it on a thread of its own, or at once where the host has none left. All that `work` borrows outlives
// this; it does not throw.
template <typename Result>
class Aside {
 public:
  explicit Aside(std::function<Result()> work) : work_(std::move(work)) {
    try {
      thread_ = std::thread([this]() noexcept { result_.emplace(work_()); });
    } catch (const std::system_error&) {
      result_.emplace(work_());
    }
  }
  // Waits for the end of the work.
  ~Aside() { join(); }
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;

  // Waits, too. Once.
  Result take() {
    join();
    return std::move(*result_);
  }

 private:
  void join() {
    if (thread_.joinable()) {
      thread_.join();
    }
  }

  const std::function<Result()> work_;
  std::optional<Result> result_;
  std::thread thread_;  // last: everything above is there before it starts
};

}  // namespace mayfly
