#include "devices/power/power_line.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <vector>

namespace mayfly {
namespace {

class CountingSink final : public PowerSink {
 public:
  void power_event(PowerEvent event) noexcept override {
    ++counts_[static_cast<std::size_t>(event)];
    last_ = event;
  }
  int total() const { return counts_[0].load() + counts_[1].load(); }
  PowerEvent last() const { return last_; }

 private:
  std::array<std::atomic<int>, 2> counts_{};
  std::atomic<PowerEvent> last_{};
};

TEST(PowerLine, nothing_requested_is_nothing) {
  CountingSink sink;
  const PowerLine line(sink);
  EXPECT_FALSE(line.requested());
  EXPECT_EQ(sink.total(), 0);
}

TEST(PowerLine, first_request_wins_over_every_later_one) {
  for (const PowerEvent first : {PowerEvent::kReset, PowerEvent::kPowerOff}) {
    for (const PowerEvent second : {PowerEvent::kReset, PowerEvent::kPowerOff}) {
      CountingSink sink;
      PowerLine line(sink);
      line.request(first);
      line.request(second);
      line.request(first);
      EXPECT_EQ(line.requested(), first);
      EXPECT_EQ(sink.total(), 1);
      EXPECT_EQ(sink.last(), first);
    }
  }
}

TEST(PowerLine, racing_requests_reach_the_sink_once) {
  constexpr std::size_t kRounds = 20000;
  constexpr std::size_t kVcpus = 2;
  struct Round {
    CountingSink sink;
    PowerLine line{sink};
    std::atomic<std::size_t> arrived{0};
  };
  std::vector<Round> rounds(kRounds);
  std::vector<std::thread> vcpus;
  for (std::size_t i = 0; i < kVcpus; ++i) {
    vcpus.emplace_back([&rounds, i] {
      for (Round& round : rounds) {
        // All at once, as nearly as threads can be; where they share a processor, they must yield it.
        ++round.arrived;
        for (int spins = 0; round.arrived.load() < kVcpus; ++spins) {
          if (spins > 1000) {
            std::this_thread::yield();
          }
        }
        round.line.request(i == 0 ? PowerEvent::kReset : PowerEvent::kPowerOff);
      }
    });
  }
  for (auto& vcpu : vcpus) {
    vcpu.join();
  }
  for (const Round& round : rounds) {
    ASSERT_EQ(round.sink.total(), 1);
    ASSERT_EQ(round.line.requested(), round.sink.last());
  }
}

}  // namespace
}  // namespace mayfly
