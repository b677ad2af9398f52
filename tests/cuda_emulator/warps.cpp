// What the lanes of a warp do together: shuffles, votes and __syncwarp. Lanes with the same mask at the same line meet.
#include <algorithm>

#include "runtime.h"

namespace emulator {

unsigned lane() { return number(*running) % warp_lanes; }

static Fiber* lane_of(const Fiber& fiber, unsigned lane) {
  unsigned i = number(fiber) / warp_lanes * warp_lanes + lane;
  return i < thread_count ? &fibers[i] : nullptr;
}

template <class F> static void for_lanes(const Fiber& fiber, unsigned mask, F f) {
  for (unsigned lane = 0; lane < warp_lanes; ++lane)
    if (mask >> lane & 1)
      if (Fiber* other = lane_of(fiber, lane)) f(*other, lane);
}

static bool meets(const Fiber& fiber, const Fiber& other) {
  return other.state == State::in_warp && other.meeting == fiber.meeting && other.mask == fiber.mask &&
         other.line == fiber.line;
}

static bool is_complete(const Fiber& fiber) {
  for (unsigned lane = warp_lanes; lane-- > 0;) {
    const Fiber* other = fiber.mask >> lane & 1 ? lane_of(fiber, lane) : nullptr;
    if (other && other->state != State::ended && !meets(fiber, *other)) return false;
  }
  return true;
}

static void answer_shuffle(Fiber& fiber, unsigned present) {
  unsigned source = unsigned(fiber.source) % warp_lanes;
  fiber.result = ~0ull;  // NaN, or -1
  if (present >> source & 1) {
    fiber.result = lane_of(fiber, source)->value;
  } else {
    Report absent = report_of(Fault::absent_source, fiber);
    absent.lane = source;
    report(absent);
  }
}

static void order_memory(const Fiber& fiber, unsigned present) {
  ++now;
  uint32_t joined[warp_lanes] = {};
  for_lanes(fiber, present, [&](Fiber& other, unsigned lane) {
    for (unsigned j = 0; j < warp_lanes; ++j) joined[j] = std::max(joined[j], seen[number(other)][j]);
  });
  for_lanes(fiber, present, [&](Fiber&, unsigned lane) { joined[lane] = now; });
  for_lanes(fiber, present, [&](Fiber& other, unsigned) { memcpy(seen[number(other)], joined, sizeof joined); });
}

static void complete(const Fiber& fiber) {
  unsigned present = 0, votes = 0;
  for_lanes(fiber, fiber.mask, [&](Fiber& other, unsigned lane) {
    if (other.state == State::ended) {
      // CUDA lets __syncwarp name lanes that have ended.
      if (fiber.meeting != Meeting::synchronise) report_pair(Fault::lane_ended, fiber, other);
    } else {
      present |= 1u << lane;
      votes |= unsigned(other.value != 0) << lane;
    }
  });
  for_lanes(fiber, present, [&](Fiber& other, unsigned) {
    if (fiber.meeting == Meeting::shuffle) answer_shuffle(other, present);
    if (fiber.meeting == Meeting::vote) other.result = votes;
  });
  if (fiber.meeting == Meeting::synchronise) order_memory(fiber, present);
  for_lanes(fiber, present, [&](Fiber& other, unsigned) { other.state = State::runs; });
}

void release_warp_of(const Fiber& ended) {
  for_lanes(ended, ~0u, [](Fiber& other, unsigned) {
    if (other.state == State::in_warp && is_complete(other)) complete(other);
  });
}

uint64_t meet(Meeting meeting, unsigned mask, uint64_t value, int source, int line) {
  Fiber& me = *running;
  me.meeting = meeting, me.mask = mask, me.value = value, me.source = source, me.line = line;
  if (!(mask >> lane() & 1)) {
    report(report_of(Fault::not_in_mask, me));
    stop();
  }
  me.state = State::in_warp;
  if (is_complete(me)) complete(me);
  else switch_away();
  return me.result;
}

void report_standstill_in_warp(const Fiber& fiber) {
  const Fiber* missing = nullptr;
  for_lanes(fiber, fiber.mask, [&](Fiber& other, unsigned) {
    if (!missing && other.state != State::ended && !meets(fiber, other)) missing = &other;
  });
  report_pair(Fault::lane_waits_elsewhere, fiber, *missing);
}

}  // namespace emulator
