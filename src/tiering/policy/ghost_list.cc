// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/ghost_list.h"

#include <algorithm>
#include <bit>

namespace terrace::tiering {
namespace {
constexpr uint64_t kFirstRing = 1024;
}

GhostList::GhostList(uint64_t capacity)
    : capacity_(std::max<uint64_t>(capacity, 1)), limit_(capacity_), ring_(kFirstRing), table_(2 * kFirstRing) {}

void GhostList::SetLimit(uint64_t limit) {
  limit_ = std::clamp<uint64_t>(limit, 1, capacity_);
  while (size_ > limit_) DropOldest();
}

void GhostList::Add(uint64_t fingerprint) {
  if (fingerprint == 0) return;
  Remove(fingerprint);
  while (size_ >= limit_) DropOldest();
  while (begin_ < end_ && ring_[begin_ % ring_.size()] == 0) ++begin_;
  if (end_ - begin_ == ring_.size()) Grow();
  const auto place = static_cast<uint32_t>(end_++ % ring_.size());
  ring_[place] = fingerprint;
  uint32_t slot = Home(fingerprint);
  while (table_[slot] != 0) slot = (slot + 1) & (static_cast<uint32_t>(table_.size()) - 1);
  table_[slot] = place + 1;
  ++size_;
}

bool GhostList::Remove(uint64_t fingerprint) {
  const uint32_t slot = Find(fingerprint);
  if (slot == kNone) return false;
  ring_[table_[slot] - 1] = 0;
  Empty(slot);
  --size_;
  return true;
}

uint32_t GhostList::Find(uint64_t fingerprint) const {
  const auto last = static_cast<uint32_t>(table_.size()) - 1;
  for (uint32_t slot = Home(fingerprint); table_[slot] != 0; slot = (slot + 1) & last) {
    if (ring_[table_[slot] - 1] == fingerprint) return slot;
  }
  return kNone;
}

void GhostList::Empty(uint32_t hole) {
  // The removed one's place in the ring may be zero by now; those behind it are whole.
  const auto last = static_cast<uint32_t>(table_.size()) - 1;
  for (uint32_t slot = (hole + 1) & last; table_[slot] != 0; slot = (slot + 1) & last) {
    const uint32_t home = Home(ring_[table_[slot] - 1]);
    if (((slot - home) & last) >= ((slot - hole) & last)) {
      table_[hole] = table_[slot];
      hole = slot;
    }
  }
  table_[hole] = 0;
}

void GhostList::DropOldest() {
  while (ring_[begin_ % ring_.size()] == 0) ++begin_;
  Remove(ring_[begin_ % ring_.size()]);
  ++begin_;
}

// Twice the ring, or the same without its holes.
void GhostList::Grow() {
  std::vector<uint64_t> kept;
  for (uint64_t i = begin_; i < end_; ++i) {
    if (ring_[i % ring_.size()] != 0) kept.push_back(ring_[i % ring_.size()]);
  }
  const size_t target = std::max<size_t>(kFirstRing, std::bit_ceil(kept.size() * 2));
  ring_.assign(target, 0);
  table_.assign(2 * target, 0);
  begin_ = end_ = size_ = 0;
  for (const uint64_t fingerprint : kept) Add(fingerprint);
}

}  // namespace terrace::tiering
