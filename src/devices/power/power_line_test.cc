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
  for (int round = 0; round < 50; ++round) {
    CountingSink sink;
    PowerLine line(sink);
    std::atomic<bool> go{false};
    std::vector<std::thread> vcpus;
    for (int i = 0; i < 4; ++i) {
      vcpus.emplace_back([&line, &go, i] {
        go.wait(false);
        line.request(i % 2 == 0 ? PowerEvent::kReset : PowerEvent::kPowerOff);
      });
    }
    go.store(true);
    go.notify_all();
    for (auto& vcpu : vcpus) {
      vcpu.join();
    }
    ASSERT_EQ(sink.total(), 1);
    ASSERT_EQ(line.requested(), sink.last());
  }
}

}  // namespace
}  // namespace mayfly
