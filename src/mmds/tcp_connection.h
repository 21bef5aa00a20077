// The server's end of one TCP connection (RFC 9293) over which HTTP is spoken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "mmds/mmds.h"

namespace mayfly {

inline constexpr std::uint8_t kTcpFin = 1;
inline constexpr std::uint8_t kTcpSyn = 2;
inline constexpr std::uint8_t kTcpRst = 4;
inline constexpr std::uint8_t kTcpPsh = 8;
inline constexpr std::uint8_t kTcpAck = 16;

// A segment, without its ports.
struct TcpSegment {
  std::uint32_t sequence = 0;
  std::uint32_t acknowledgment = 0;
  std::uint8_t flags = 0;
  std::uint16_t window = 0;
  std::optional<std::uint16_t> mss{};  // the option, on a SYN
  std::span<const std::byte> payload{};

  bool has(std::uint8_t flag) const { return (flags & flag) != 0; }
  // In sequence numbers.
  std::uint32_t length() const {
    return static_cast<std::uint32_t>(payload.size()) + (has(kTcpSyn) ? 1 : 0) + (has(kTcpFin) ? 1 : 0);
  }
};

// What RFC 9293 calls a TCB, as small as its use allows. The link is the guest's own memory: it neither
// reorders nor congests, and loses a segment only where the guest has no buffer for it. So there is no
// congestion control, no selective acknowledgement and no window scaling; what comes out of order is left to
// the client to send again; and one response is acknowledged whole before the next request is looked at.
//
// Bounded: kWindow bytes of input, which are dropped as soon as the connection ends, one response, and
// kMaxTries transmissions. Times are those of a monotonic clock, in nanoseconds.
class TcpConnection {
 public:
  // Bytes of a request; also the window that the client may fill.
  static constexpr std::size_t kWindow = 4096;
  static constexpr std::uint64_t kSecond = 1'000'000'000;
  // RFC 6298, 2.1 and 5.5: doubled with each try.
  static constexpr std::uint64_t kFirstTimeout = kSecond;
  static constexpr unsigned kMaxTries = 6;
  // How long a client that was told the end may go on without telling its own.
  static constexpr std::uint64_t kMaxHalfClosed = 10 * kSecond;
  // TIME-WAIT. Nothing lives longer on this link than it waits for a buffer: two minutes would be for others.
  static constexpr std::uint64_t kTimeWait = kSecond;

  // Answers `syn`, a SYN without ACK, RST and FIN. `max_segment` bounds what is sent, whatever the client
  // could take. `mmds` is borrowed.
  TcpConnection(Mmds& mmds, const TcpSegment& syn, std::uint32_t initial_sequence, std::uint16_t max_segment,
                std::uint64_t now);

  // A segment from the client. It may lie about everything.
  void receive(const TcpSegment& segment, std::uint64_t now);

  // The next segment to be sent now, or nothing. Its payload is valid until the next call of receive().
  std::optional<TcpSegment> next(std::uint64_t now);

  // When next() should be called without a receive() before: 0: now. UINT64_MAX: never.
  std::uint64_t due() const;

  // It is no more: to be forgotten, once next() has nothing more to send.
  bool done() const { return state_ == State::kDone; }
  // Its end was waited for long enough: to be forgotten without a word.
  bool expired(std::uint64_t now) const { return now >= expires_; }
  // The client did not answer, and the connection was reset for that.
  bool gave_up() const { return gave_up_; }
  // Nothing is under way: no request, no response. A handshake is as good as that.
  bool idle() const;
  // Both ends were told: it only waits, for what may come late.
  bool over() const { return state_ == State::kTimeWait || done(); }
  std::uint64_t last_heard() const { return last_heard_; }
  // The reset that tells the client of that.
  TcpSegment farewell() const;
  // Whether `syn` is the start of another connection from the same port, and this one but waits for its end
  // (3.10.7.4, TIME-WAIT).
  bool gives_way_to(const TcpSegment& syn) const;

 private:
  enum class State : std::uint8_t {
    kSynReceived,
    kOpen,  // from ESTABLISHED on, whatever ends were told
    kTimeWait,
    kDone,
  };

  std::uint32_t window() const { return static_cast<std::uint32_t>(kWindow - input_size_); }
  std::uint32_t end_of_output() const;
  bool fin_sent() const { return fin_queued_ && highest_sent_ == end_of_output() + 1; }
  void acknowledge(const TcpSegment& segment);
  void take(const TcpSegment& segment);
  void serve();
  void close_up(std::uint64_t now);
  void run_timer(std::uint64_t now);
  void set_timer(std::uint64_t now);
  std::uint32_t sendable() const;
  bool has_more_to_send() const;
  TcpSegment make(std::uint8_t flags) const;
  void reset(std::uint32_t sequence);

  Mmds* mmds_;
  State state_ = State::kSynReceived;
  std::uint32_t max_segment_;
  std::uint64_t last_heard_;
  bool gave_up_ = false;

  // Towards us. RCV.NXT, and what came in order and was not used yet.
  std::uint32_t next_expected_;
  // NOLINTNEXTLINE(modernize-avoid-c-arrays): a vector would write it all
  std::unique_ptr<char[]> input_;
  std::size_t input_size_ = 0;
  bool fin_received_ = false;
  bool owes_ack_ = false;

  // Towards the client: SND.UNA, SND.NXT, which falls back to it where something is to be sent again, and the
  // highest that SND.NXT ever was.
  std::uint32_t unacknowledged_;
  std::uint32_t next_to_send_;
  std::uint32_t highest_sent_;
  std::uint32_t client_window_;
  std::uint32_t window_sequence_;        // SND.WL1
  std::uint32_t window_acknowledgment_;  // SND.WL2
  std::string output_;                   // the response
  std::uint32_t output_start_;           // the sequence number of its first byte
  bool fin_queued_ = false;              // behind the response
  bool closed_first_ = false;            // before the client did
  bool probe_ = false;                   // one byte may go into a closed window
  std::optional<TcpSegment> reset_;

  unsigned tries_ = 0;
  std::uint64_t timer_ = UINT64_MAX;    // retransmission, or another look at a closed window
  std::uint64_t expires_ = UINT64_MAX;  // the whole
};

}  // namespace mayfly
