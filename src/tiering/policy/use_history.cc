// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/use_history.h"

#include <algorithm>

#include "kvstore/base/check.h"

namespace terrace::tiering {

UseHistory::UseHistory(uint64_t capacity, uint32_t n_boundaries)
    : mask_(static_cast<uint32_t>(capacity - 1)),
      slot_shift_(63 - static_cast<int>(std::bit_width(capacity - 1))),
      ring_(capacity),
      table_(capacity * 2, 0),
      cursors_(n_boundaries, 0) {
  TERRACE_CHECK(std::has_single_bit(capacity) && capacity <= 1u << 30);
}

uint32_t UseHistory::Find(uint64_t fingerprint) const {
  const auto last = static_cast<uint32_t>(table_.size() - 1);
  for (uint32_t slot = Slot(fingerprint); table_[slot] != 0; slot = (slot + 1) & last) {
    if (ring_[table_[slot] - 1].fingerprint == fingerprint) return table_[slot] - 1;
  }
  return kNone;
}

void UseHistory::Close(uint32_t place) {
  Forget(place);
  ring_[place].is_open = 0;
}

uint32_t UseHistory::Begin(const Rest& rest) {
  const auto place = static_cast<uint32_t>(end_ & mask_);
  if (ring_[place].is_open != 0) Close(place);
  ++end_;
  ring_[place] = rest;
  ring_[place].is_open = 1;
  const auto last = static_cast<uint32_t>(table_.size() - 1);
  uint32_t slot = Slot(rest.fingerprint);
  while (table_[slot] != 0) slot = (slot + 1) & last;
  table_[slot] = place + 1;
  return place;
}

void UseHistory::Forget(uint32_t place) {
  const auto last = static_cast<uint32_t>(table_.size() - 1);
  uint32_t hole = Slot(ring_[place].fingerprint);
  while (table_[hole] != place + 1) hole = (hole + 1) & last;
  // Those behind move up, as far as they may.
  for (uint32_t slot = (hole + 1) & last; table_[slot] != 0; slot = (slot + 1) & last) {
    const uint32_t home = Slot(ring_[table_[slot] - 1].fingerprint);
    if (((slot - home) & last) >= ((slot - hole) & last)) {
      table_[hole] = table_[slot];
      hole = slot;
    }
  }
  table_[hole] = 0;
}

void UseHistory::Age(uint32_t now, const std::vector<uint32_t>& boundaries,
                     absl::FunctionRef<void(uint8_t kind, uint32_t boundary)> passed) {
  const uint64_t begin = end_ > capacity() ? end_ - capacity() : 0;
  for (uint32_t i = 0; i < cursors_.size(); ++i) {
    uint64_t& cursor = cursors_[i];
    cursor = std::max(cursor, begin);
    for (; cursor < end_; ++cursor) {
      const Rest& rest = ring_[cursor & mask_];
      if (now - rest.start < boundaries[i]) break;
      if (rest.is_open != 0) passed(rest.kind, i);
    }
  }
}

}  // namespace terrace::tiering
