// Events on their way from any thread to the streams: text/event-stream (WHATWG HTML, 9.2), and the last of
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"

namespace mayfly::api {

struct StreamEvent {
  std::uint64_t id;
  std::string text;  // as it goes over the stream, with its empty line
};

class EventLog {
 public:
  // The longest name; of each event, as text, no more than kMaxEventText.
  static constexpr std::size_t kMaxName = 64;
  // Events that wait for the server's thread: beyond that, the oldest is lost.
  static constexpr std::size_t kMaxPending = 256;

  EventLog(std::size_t max_data, std::size_t kept) : max_data_(max_data), kept_limit_(kept) {}

  enum class Added { kRefused, kFirst, kBehindOthers };
  // Takes an event and gives it its id. kFirst: nothing was waiting, so that somebody has to tell the
  // server's thread. kRefused: the name or the data is not what an event may have. Any thread.
  Added add(std::string_view name, std::string_view data);

  // What was added since the last call, which is also kept from now on. Server's thread.
  std::vector<StreamEvent> take_pending();

  // Kept events with ids after `id`, as text, oldest first. Server's thread.
  std::string after(std::uint64_t id) const;

 private:
  const std::size_t max_data_;
  const std::size_t kept_limit_;
  std::deque<StreamEvent> kept_;

  Mutex mutex_;  // a leaf: no other lock is taken under it
  std::uint64_t next_id_ MAYFLY_GUARDED_BY(mutex_) = 1;
  std::deque<StreamEvent> pending_ MAYFLY_GUARDED_BY(mutex_);
};

}  // namespace mayfly::api
