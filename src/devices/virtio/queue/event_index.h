// When one side of a virtqueue wants to hear of the other's progress (VIRTIO_F_EVENT_IDX).
#pragma once

#include <concepts>
#include <cstdint>

namespace mayfly {

// Whether an index that moved from `before` to `now` has passed `event`: the other side wants to be told once
// its entry number `event` is there, that is once the index has become `event` + 1. All three count modulo
// 2^16, and `now` lies 0 to 65,535 entries after `before` (virtio 1.2, sections 2.7.7.2 and 2.7.10.1).
// The width is a parameter, so that a test can go through all there is of a smaller one.
template <std::unsigned_integral Index>
constexpr bool passed_event(Index event, Index before, Index now) {
  // How far the index has gone beyond `event`, less than how far it has gone at all.
  return static_cast<Index>(now - event - 1) < static_cast<Index>(now - before);
}

}  // namespace mayfly
