// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// Lru2Policy: LRU with second-touch admission: a block seen for the first time stays in a small probation
// only; one that was seen before is kept in the order of use.
#pragma once

#include "tiering/policy/ghost_list.h"
#include "tiering/policy/queue_policy.h"

namespace terrace::tiering {

// The probation has a fiftieth of what is held. Remembers eight times as many blocks as are expected, and
// 65,536 at least: a small cache is the one that must look back far.
class Lru2Policy final : public QueuePolicy {
 public:
  Lru2Policy(uint64_t max_blocks, uint64_t expected_blocks)
      : QueuePolicy(max_blocks, 2),
        ghosts_(std::max<uint64_t>(8 * expected_blocks, 65536)),
        fingerprints_(max_blocks) {}

  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t /*now_ns*/) override {
    const uint64_t held = lists_.Size(kProbation) + lists_.Size(kKept);
    const uint32_t first = lists_.Size(kProbation) * 50 >= held ? kProbation : kKept;
    const BlockId block = lists_.FindCold(first, allowed);
    return block != kNoBlock ? block : lists_.FindCold(1 - first, allowed);
  }
  Stats GetStats() const override { return {.name = "lru2", .ghost_hits = ghost_hits_}; }

 protected:
  uint32_t ListOfNew(BlockId block, const Insert& insert) override {
    fingerprints_[block] = insert.fingerprint;
    if (!ghosts_.Remove(insert.fingerprint)) return kProbation;
    ++ghost_hits_;
    return kKept;
  }
  uint32_t ListAfterUse(BlockId, uint32_t) override { return kKept; }
  void OnGone(BlockId block, uint32_t, bool evicted) override {
    if (evicted) ghosts_.Add(fingerprints_[block]);
  }

 private:
  static constexpr uint32_t kProbation = 0, kKept = 1;
  GhostList ghosts_;
  LazyArray<uint64_t> fingerprints_;
  uint64_t ghost_hits_ = 0;
};

}  // namespace terrace::tiering
