#include "mmds/tcp_connection.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "mmds/mmds_service.h"

namespace mayfly {
namespace {

// RFC 791: what every link carries, without the headers.
constexpr std::uint16_t kMinSegment = 68 - 40;
// RFC 9293, 3.7.1: where the client tells nothing.
constexpr std::uint16_t kDefaultSegment = 536;
// What the client is told, as by anyone on an Ethernet. Larger segments are welcome.
constexpr std::uint16_t kOurSegment = 1460;

// How far `to` is ahead of `from`: sequence numbers wrap (3.4).
std::int32_t distance(std::uint32_t from, std::uint32_t to) {
  return static_cast<std::int32_t>(to - from);
}

}  // namespace

TcpConnection::TcpConnection(Mmds& mmds, const TcpSegment& syn, std::uint32_t initial_sequence,
                             std::uint16_t max_segment, std::uint64_t now)
    : mmds_(&mmds),
      max_segment_(std::min(std::max(syn.mss.value_or(kDefaultSegment), kMinSegment), max_segment)),
      last_heard_(now),
      next_expected_(syn.sequence + 1),
      // NOLINTNEXTLINE(modernize-avoid-c-arrays): a vector would write it all
      input_(std::make_unique_for_overwrite<char[]>(kWindow)),
      unacknowledged_(initial_sequence),
      next_to_send_(initial_sequence),
      highest_sent_(initial_sequence),
      client_window_(syn.window),
      window_sequence_(syn.sequence),
      window_acknowledgment_(initial_sequence),
      output_start_(initial_sequence + 1) {}

std::uint32_t TcpConnection::end_of_output() const {
  return output_start_ + static_cast<std::uint32_t>(output_.size());
}

bool TcpConnection::idle() const {
  return state_ != State::kOpen || (output_.empty() && input_size_ == 0 && !fin_queued_);
}

bool TcpConnection::gives_way_to(const TcpSegment& syn) const {
  return state_ == State::kTimeWait && distance(next_expected_, syn.sequence) > 0;
}

TcpSegment TcpConnection::make(std::uint8_t flags) const {
  return {.sequence = next_to_send_,
          .acknowledgment = next_expected_,
          .flags = flags,
          .window = static_cast<std::uint16_t>(window())};
}

void TcpConnection::reset(std::uint32_t sequence) {
  reset_ = TcpSegment{.sequence = sequence, .flags = kTcpRst};
  state_ = State::kDone;
}

TcpSegment TcpConnection::farewell() const {
  return {.sequence = unacknowledged_, .flags = kTcpRst};
}

// RFC 9293, 3.10.7.4, in its order.
void TcpConnection::receive(const TcpSegment& segment, std::uint64_t now) {
  if (done()) {
    return;
  }
  last_heard_ = now;
  // First: the sequence number. What begins behind the window, or ends before it, is of no use.
  const std::int32_t start = distance(next_expected_, segment.sequence);
  const std::int32_t end = start + static_cast<std::int32_t>(segment.length());
  const auto room = static_cast<std::int32_t>(window());
  const bool useful =
      segment.length() == 0 ? start >= 0 && (start < room || start == 0) : start < room && end > 0;
  // Second: the reset. RFC 5961, 3.2: only the one number is believed, others are asked about.
  if (segment.has(kTcpRst)) {
    if (start == 0) {
      state_ = State::kDone;
    } else if (useful) {
      owes_ack_ = true;
    }
    return;
  }
  if (state_ == State::kTimeWait) {
    owes_ack_ = true;
    expires_ = now + kTimeWait;
    return;
  }
  // Fourth: a SYN again is the first one, which was not answered, or is asked about (RFC 5961, 4.2).
  if (segment.has(kTcpSyn)) {
    if (state_ == State::kSynReceived && segment.sequence + 1 == next_expected_ && !segment.has(kTcpAck)) {
      next_to_send_ = unacknowledged_;
    } else {
      owes_ack_ = true;
    }
    return;
  }
  if (!useful) {
    owes_ack_ = true;
    if (start != 0) {
      return;  // else it found the window closed: its acknowledgment counts (3.10.7.4)
    }
  }
  // Fifth: the acknowledgment.
  if (!segment.has(kTcpAck)) {
    return;
  }
  const std::int32_t acknowledged = distance(unacknowledged_, segment.acknowledgment);
  const bool too_far = distance(highest_sent_, segment.acknowledgment) > 0;
  if (state_ == State::kSynReceived) {
    if (acknowledged <= 0 || too_far) {
      reset(segment.acknowledgment);
      return;
    }
    state_ = State::kOpen;
  } else if (too_far || acknowledged < -0x10000) {
    owes_ack_ = true;  // RFC 5961, 5.2
    return;
  }
  acknowledge(segment);
  // Seventh and eighth: the text, and the end.
  take(segment);
  serve();
  close_up(now);
  set_timer(now);
}

void TcpConnection::acknowledge(const TcpSegment& segment) {
  if (distance(unacknowledged_, segment.acknowledgment) > 0) {
    unacknowledged_ = segment.acknowledgment;
    if (distance(next_to_send_, unacknowledged_) > 0) {
      next_to_send_ = unacknowledged_;
    }
    tries_ = 0;
    timer_ = UINT64_MAX;
  }
  const std::int32_t newer = distance(window_sequence_, segment.sequence);
  if (newer > 0 || (newer == 0 && distance(window_acknowledgment_, segment.acknowledgment) >= 0)) {
    if (client_window_ == 0) {
      next_to_send_ = unacknowledged_;  // what probed the closed window was not taken
    }
    client_window_ = segment.window;
    window_sequence_ = segment.sequence;
    window_acknowledgment_ = segment.acknowledgment;
  }
  if (client_window_ == 0) {
    tries_ = 0;  // 3.8.6.1: it lives, and may keep its window closed for as long as it likes
    timer_ = UINT64_MAX;
  }
  if (!output_.empty() && distance(end_of_output(), unacknowledged_) >= 0) {
    output_start_ = end_of_output();
    output_.clear();
    output_.shrink_to_fit();
  }
}

void TcpConnection::take(const TcpSegment& segment) {
  const std::int32_t start = distance(next_expected_, segment.sequence);
  if (start > 0) {
    owes_ack_ = true;  // something is missing before it: the client shall send both
    return;
  }
  const auto known = static_cast<std::uint32_t>(-start);
  if (fin_received_ || known >= segment.length()) {
    return;  // nothing new
  }
  owes_ack_ = true;
  auto fresh = segment.payload.subspan(std::min<std::size_t>(known, segment.payload.size()));
  // Once we have closed nothing more is asked for: what still comes is passed over.
  const bool fits = fin_queued_ || fresh.size() <= window();
  if (!fin_queued_) {
    fresh = fresh.first(std::min<std::size_t>(fresh.size(), window()));
    if (!fresh.empty()) {
      std::memcpy(input_.get() + input_size_, fresh.data(), fresh.size());
      input_size_ += fresh.size();
    }
  }
  next_expected_ += static_cast<std::uint32_t>(fresh.size());
  if (segment.has(kTcpFin) && fits) {
    ++next_expected_;
    fin_received_ = true;
  }
}

void TcpConnection::serve() {
  if (state_ != State::kOpen || !output_.empty() || fin_queued_) {
    return;
  }
  HttpAnswer answer =
      answer_guest(*mmds_, std::string_view(input_.get(), input_size_), input_size_ == kWindow);
  input_size_ -= answer.used;
  std::memmove(input_.get(), input_.get() + answer.used, input_size_);
  output_ = std::move(answer.bytes);
  // A client that has told its end, and has asked nothing more, is told ours.
  if (answer.close || (fin_received_ && output_.empty())) {
    fin_queued_ = true;
    closed_first_ = !fin_received_;
    input_size_ = 0;
  }
}

void TcpConnection::close_up(std::uint64_t now) {
  const bool fin_acknowledged = fin_sent() && unacknowledged_ == end_of_output() + 1;
  if (!fin_acknowledged) {
    return;
  }
  if (!fin_received_) {
    expires_ = std::min(expires_, now + kMaxHalfClosed);  // FIN-WAIT-2
  } else if (closed_first_) {
    state_ = State::kTimeWait;
    expires_ = now + kTimeWait;
    input_.reset();
  } else {
    state_ = State::kDone;  // LAST-ACK
  }
}

bool TcpConnection::has_more_to_send() const {
  const std::uint32_t end =
      state_ == State::kSynReceived ? output_start_ : end_of_output() + (fin_queued_ ? 1 : 0);
  return distance(next_to_send_, end) > 0;
}

// Bytes of the response that may go out in one segment now.
std::uint32_t TcpConnection::sendable() const {
  const std::int32_t left = distance(next_to_send_, end_of_output());
  if (state_ != State::kOpen || left <= 0) {
    return 0;
  }
  const std::int32_t usable = distance(next_to_send_, unacknowledged_ + client_window_);
  const std::uint32_t room = usable > 0 ? static_cast<std::uint32_t>(usable) : (probe_ ? 1U : 0U);
  const std::uint32_t wanted = std::min(static_cast<std::uint32_t>(left), max_segment_);
  // 3.8.6.2.1: no part of a segment while others are on their way.
  return room >= wanted ? wanted : (next_to_send_ == unacknowledged_ ? room : 0);
}

void TcpConnection::set_timer(std::uint64_t now) {
  const bool waits = state_ != State::kTimeWait && !done() &&
                     (unacknowledged_ != next_to_send_ || (has_more_to_send() && sendable() == 0));
  if (!waits) {
    timer_ = UINT64_MAX;
  } else if (timer_ == UINT64_MAX) {
    timer_ = now + (kFirstTimeout << tries_);
  }
}

void TcpConnection::run_timer(std::uint64_t now) {
  if (done()) {
    return;
  }
  if (now >= timer_) {
    if (++tries_ == kMaxTries) {
      gave_up_ = true;
      reset(unacknowledged_);
      return;
    }
    next_to_send_ = unacknowledged_;
    probe_ = state_ == State::kOpen;
    timer_ = now + (kFirstTimeout << tries_);
  }
}

std::uint64_t TcpConnection::due() const {
  if (reset_) {
    return 0;
  }
  if (done()) {
    return UINT64_MAX;
  }
  const bool sends =
      owes_ack_ || sendable() != 0 ||
      (has_more_to_send() && (state_ == State::kSynReceived || next_to_send_ == end_of_output()));
  return sends ? 0 : std::min(timer_, expires_);
}

std::optional<TcpSegment> TcpConnection::next(std::uint64_t now) {
  run_timer(now);
  if (reset_) {
    return std::exchange(reset_, std::nullopt);
  }
  if (done()) {
    // The last acknowledgment of an orderly end went with our FIN, or needs none.
    return std::nullopt;
  }
  std::optional<TcpSegment> segment;
  if (state_ == State::kSynReceived) {
    if (has_more_to_send()) {
      segment = make(kTcpSyn | kTcpAck);
      segment->mss = kOurSegment;
      ++next_to_send_;
    }
  } else if (const std::uint32_t bytes = sendable(); bytes != 0) {
    segment = make(kTcpAck);
    const std::span<const char> rest = std::span(output_).subspan(next_to_send_ - output_start_, bytes);
    segment->payload = std::as_bytes(rest);
    next_to_send_ += bytes;
    if (next_to_send_ == end_of_output()) {
      segment->flags |= kTcpPsh;
    }
    probe_ = false;
  }
  // An end goes with the last bytes of the response, or alone.
  if (state_ == State::kOpen && fin_queued_ && next_to_send_ == end_of_output()) {
    if (!segment) {
      segment = make(kTcpAck);
    }
    segment->flags |= kTcpFin;
    ++next_to_send_;
  }
  if (!segment && owes_ack_) {
    segment = make(kTcpAck);
  }
  if (!segment) {
    return std::nullopt;
  }
  owes_ack_ = false;
  if (distance(highest_sent_, next_to_send_) > 0) {
    highest_sent_ = next_to_send_;
  }
  set_timer(now);
  return segment;
}

}  // namespace mayfly
