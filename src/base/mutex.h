// Locks that clang checks: a member that says which lock guards it cannot be touched without that lock
// (-Wthread-safety, which is an error in this project's builds by clang). Other compilers see plain locks.
//
//   Mutex mutex_;  // a leaf: no other lock is taken under it
//   int count_ MAYFLY_GUARDED_BY(mutex_) = 0;
//   ...
//   const MutexLock lock(mutex_);
//   ++count_;
//
// std::mutex itself carries no annotations with this project's standard library, so that a member guarded by
// one would be checked by nobody.
//
// The order of locks is written where they are declared: what may be taken under each. All of this project's
// are leaves unless they say otherwise.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define MAYFLY_THREAD_ATTRIBUTE(attribute) __attribute__((attribute))
#else
#define MAYFLY_THREAD_ATTRIBUTE(attribute)
#endif

// On a member: it is read and written with the lock held only.
#define MAYFLY_GUARDED_BY(mutex) MAYFLY_THREAD_ATTRIBUTE(guarded_by(mutex))
// On a function: its caller holds the lock.
#define MAYFLY_REQUIRES(mutex) MAYFLY_THREAD_ATTRIBUTE(requires_capability(mutex))
// On a function: its caller does not hold the lock, for the function takes it.
#define MAYFLY_EXCLUDES(mutex) MAYFLY_THREAD_ATTRIBUTE(locks_excluded(mutex))

namespace mayfly {

class MAYFLY_THREAD_ATTRIBUTE(capability("mutex")) Mutex {
 public:
  constexpr Mutex() = default;
  ~Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() MAYFLY_THREAD_ATTRIBUTE(acquire_capability()) { mutex_.lock(); }
  void unlock() MAYFLY_THREAD_ATTRIBUTE(release_capability()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

// Holds a lock from its making to its end.
class MAYFLY_THREAD_ATTRIBUTE(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) MAYFLY_THREAD_ATTRIBUTE(acquire_capability(mutex)) : mutex_(mutex) {
    mutex_.lock();
  }
  ~MutexLock() MAYFLY_THREAD_ATTRIBUTE(release_capability()) { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// Waits for what another thread changes under a lock. There are no waits with a predicate: clang would not
// know that it is called with the lock held. Wait in a loop; wake-ups without a cause happen.
class CondVar {
 public:
  // The lock is released while it waits, and held again after.
  void wait(Mutex& mutex) MAYFLY_REQUIRES(mutex) {
    std::unique_lock<std::mutex> held(mutex.mutex_, std::adopt_lock);
    changed_.wait(held);
    held.release();  // the caller's again
  }
  // The same; false where `deadline` has passed.
  bool wait_until(Mutex& mutex, std::chrono::steady_clock::time_point deadline) MAYFLY_REQUIRES(mutex) {
    std::unique_lock<std::mutex> held(mutex.mutex_, std::adopt_lock);
    const bool in_time = changed_.wait_until(held, deadline) == std::cv_status::no_timeout;
    held.release();  // the caller's again
    return in_time;
  }

  void notify_all() noexcept { changed_.notify_all(); }

 private:
  std::condition_variable changed_;
};

}  // namespace mayfly
