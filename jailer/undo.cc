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

Result<std::unique_ptr<UndoThread>> UndoThread::start(Undo& undo) {
  std::unique_ptr<UndoThread> self(new UndoThread(undo));
  pthread_t thread{};
  if (const int error = ::pthread_create(&thread, nullptr, &UndoThread::main, self.get()); error != 0) {
    return fail_errno(error, "make the thread that can take everything back");
  }
  self->thread_ = thread;
  return self;
}

void* UndoThread::main(void* self) {
  auto& own = *static_cast<UndoThread*>(self);
  own.order_.wait(Order::kWait);
  if (own.order_.load() == Order::kUndo) {
    own.left_ = own.undo_.run();
  }
  return nullptr;
}

UndoThread::~UndoThread() {
  give(Order::kEnd);
}

std::vector<Error> UndoThread::run() {
  give(Order::kUndo);
  return std::move(left_);
}

void UndoThread::give(Order order) {
  if (thread_) {
    order_.store(order);
    order_.notify_one();
    ::pthread_join(*thread_, nullptr);
    thread_.reset();
  }
}

}  // namespace mayfly::jail
