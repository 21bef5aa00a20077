// What to do when a jail cannot be completed: everything that was made goes again, the last first.
#pragma once

#include <pthread.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace mayfly::jail {

// A list of what was made, each with the way to take it back. Not thread-safe.
class Undo {
 public:
  using Action = std::function<Result<void>()>;

  void add(Action action) { actions_.push_back(std::move(action)); }
  // Takes everything back, the last first, also behind an action that fails. What could not be taken back.
  std::vector<Error> run();

 private:
  std::vector<Action> actions_;
};

// A thread that can still undo when its process has given up its privileges and the host's root directory:
// both are a thread's own as the kernel sees it (credentials(7), CLONE_FS), and execve() ends it. So nothing
// is left of it beside the program that the process becomes, as there would be of a process.
class UndoThread {
 public:
  // Borrows `undo`, which is the thread's from now on. Call before privileges are dropped and namespaces
  // entered.
  static Result<std::unique_ptr<UndoThread>> start(Undo& undo);
  ~UndoThread();
  UndoThread(const UndoThread&) = delete;
  UndoThread& operator=(const UndoThread&) = delete;

  // Has it run `undo`, and waits until that is done.
  std::vector<Error> run();

 private:
  enum class Order : int { kWait, kUndo, kEnd };

  explicit UndoThread(Undo& undo) : undo_(undo) {}
  static void* main(void* self);
  void give(Order order);

  Undo& undo_;
  std::vector<Error> left_;
  std::atomic<Order> order_ = Order::kWait;
  // Not a std::thread, which throws where none can be made.
  std::optional<pthread_t> thread_;
};

}  // namespace mayfly::jail
