#include "undo.h"

#include <utility>

namespace mayfly::jail {

std::vector<Error> Undo::run() {
  std::vector<Error> left;
  while (!actions_.empty()) {
    const Action action = std::move(actions_.back());
    actions_.pop_back();
    if (auto done = action(); !done) {
      left.push_back(std::move(done.error()));
    }
  }
  return left;
}

UndoThread::UndoThread(Undo& undo)
    : undo_(undo), thread_([this] {
        order_.wait(Order::kWait);
        if (order_.load() == Order::kUndo) {
          left_ = undo_.run();
        }
      }) {}

UndoThread::~UndoThread() {
  give(Order::kEnd);
}

std::vector<Error> UndoThread::run() {
  give(Order::kUndo);
  return std::move(left_);
}

void UndoThread::give(Order order) {
  if (thread_.joinable()) {
    order_.store(order);
    order_.notify_one();
    thread_.join();
  }
}

}  // namespace mayfly::jail
