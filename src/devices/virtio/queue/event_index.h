// When one side of a virtqueue wants to hear of the other's progress (VIRTIO_F_EVENT_IDX).
#pragma once

#include <cstdint>

namespace mayfly {

// Whether an index that moved from `before` to `now` has passed `event`: the other side wants to be told once
// its entry number `event` is there, that is once the index has become `event` + 1. All three count modulo
// 2^16, and `now` lies 0 to 65,535 entries after `before` (virtio 1.2, sections 2.7.7.2 and 2.7.10.1).
constexpr bool passed_event(std::uint16_t event, std::uint16_t before, std::uint16_t now) {
  // How far the index has gone beyond `event`, less than how far it has gone at all.
  return static_cast<std::uint16_t>(now - event - 1) < static_cast<std::uint16_t>(now - before);
}

}  // namespace mayfly
