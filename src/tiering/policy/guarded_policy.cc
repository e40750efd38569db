// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/policy/guarded_policy.h"

#include <algorithm>

namespace terrace::tiering {

GuardedPolicy::GuardedPolicy(std::unique_ptr<EvictionPolicy> chosen, uint64_t max_blocks, uint64_t expected_blocks)
    : chosen_(std::move(chosen)),
      lru_(max_blocks),
      sample_limit_(expected_blocks <= kSample ? 1ull << 32 : (kSample << 32) / expected_blocks),
      fingerprints_(max_blocks),
      shadow_(max_blocks) {}

void GuardedPolicy::OnInsert(BlockId block, const Insert& insert, int64_t now_ns) {
  OnErase(block, false);
  chosen_->OnInsert(block, insert, now_ns);
  // Behind a parent that was used long ago it would be cold from the start.
  Insert for_lru = insert;
  if (insert.parent != kNoBlock && lru_.IsStale(insert.parent)) for_lru.parent = kNoBlock;
  lru_.OnInsert(block, for_lru, now_ns);
  if (insert.fingerprint == 0 || !IsSampled(insert.fingerprint)) return;
  fingerprints_[block] = insert.fingerprint;
  ++held_;
  Count(insert.fingerprint, false);
}

void GuardedPolicy::OnAccess(BlockId block, int64_t now_ns) {
  chosen_->OnAccess(block, now_ns);
  lru_.OnAccess(block, now_ns);
  if (block < fingerprints_.size() && fingerprints_[block] != 0) Count(fingerprints_[block], true);
}

void GuardedPolicy::OnErase(BlockId block, bool evicted) {
  chosen_->OnErase(block, evicted);
  lru_.OnErase(block, evicted);
  is_full_ = is_full_ || evicted;
  if (block >= fingerprints_.size() || fingerprints_[block] == 0) return;
  // What was dropped or flushed would be gone under LRU, too.
  if (!evicted) shadow_.Remove(fingerprints_[block]);
  fingerprints_[block] = 0;
  --held_;
}

void GuardedPolicy::Count(uint64_t fingerprint, bool is_hit) {
  const bool was_there = shadow_.Contains(fingerprint);
  // What is evicted to make room comes first: held_ is what there is room for.
  shadow_.SetLimit(std::max<uint64_t>(held_, 1));
  shadow_.Add(fingerprint);
  if (!is_full_) return;
  ++references_;
  hits_ += is_hit;
  shadow_hits_ += was_there;
  if (references_ >= std::max(kMinWindow, 2 * held_)) EndWindow();
}

void GuardedPolicy::EndWindow() {
  const auto references = static_cast<double>(references_);
  last_delta_ = (static_cast<double>(hits_) - static_cast<double>(shadow_hits_)) / references;
  references_ = hits_ = shadow_hits_ = 0;
  if (uses_lru_) {
    uses_lru_ = --windows_left_ > 0;
  } else if (last_delta_ < -kMargin) {
    uses_lru_ = true;
    windows_left_ = stay_;
    stay_ = std::min(2 * stay_, kLongestStay);
    ++fallbacks_;
  }
}

BlockId GuardedPolicy::Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) {
  if (!uses_lru_) {
    const BlockId victim = chosen_->Victim(allowed, now_ns);
    if (victim != kNoBlock) return victim;
  }
  return lru_.Victim(allowed, now_ns);
}

EvictionPolicy::Stats GuardedPolicy::GetStats() const {
  Stats stats = chosen_->GetStats();
  if (uses_lru_) stats.name = "lru";
  stats.fallbacks = fallbacks_;
  stats.shadow_lru_delta = last_delta_;
  return stats;
}

}  // namespace terrace::tiering
