#include "api/http/event_log.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace mayfly::api {
namespace {

bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= EventLog::kMaxName && std::ranges::all_of(name, [](char character) {
    return (character >= 'a' && character <= 'z') || (character >= '0' && character <= '9') ||
           character == '-' || character == '_';
  });
}

// A carriage return ends a line as well as a line feed does; it has no place in data of several lines.
bool is_data(std::string_view data) {
  return data.find_first_of(std::string_view("\r\0", 2)) == std::string_view::npos;
}

std::string text_of(std::uint64_t id, std::string_view name, std::string_view data) {
  std::string text = "id: " + std::to_string(id) + "\nevent: ";
  text.append(name);
  while (true) {
    const std::size_t end = data.find('\n');
    text.append("\ndata: ").append(data.substr(0, end));
    if (end == std::string_view::npos) {
      return text.append("\n\n");
    }
    data.remove_prefix(end + 1);
  }
}

}  // namespace

EventLog::Added EventLog::add(std::string_view name, std::string_view data) {
  if (!is_name(name) || data.size() > max_data_ || !is_data(data)) {
    return Added::kRefused;
  }
  const MutexLock lock(mutex_);
  const std::uint64_t id = next_id_++;
  const bool first = pending_.empty();
  if (pending_.size() == kMaxPending) {
    pending_.pop_front();
  }
  pending_.push_back({id, text_of(id, name, data)});
  return first ? Added::kFirst : Added::kBehindOthers;
}

std::vector<StreamEvent> EventLog::take_pending() {
  std::vector<StreamEvent> taken;
  {
    const MutexLock lock(mutex_);
    taken.assign(std::make_move_iterator(pending_.begin()), std::make_move_iterator(pending_.end()));
    pending_.clear();
  }
  for (const StreamEvent& event : taken) {
    kept_.push_back(event);
    if (kept_.size() > kept_limit_) {
      kept_.pop_front();
    }
  }
  return taken;
}

std::string EventLog::after(std::uint64_t id) const {
  std::string text;
  for (const StreamEvent& event : kept_) {
    if (event.id > id) {
      text += event.text;
    }
  }
  return text;
}

}  // namespace mayfly::api
