// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// QueuePolicy: what LRU, S3-FIFO, ARC and LRU with second-touch admission have in common: blocks stand
// in queues; a use may move them; a child stands just behind its parent where both are new.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvstore/base/lazy_array.h"
#include "tiering/policy/block_lists.h"
#include "tiering/policy/eviction_policy.h"

namespace terrace::tiering {

// 13 bytes a block, 8 more where a policy remembers fingerprints. Threads: one at a time.
class QueuePolicy : public EvictionPolicy {
 public:
  void OnInsert(BlockId block, const Insert& insert, int64_t /*now_ns*/) final {
    lists_.Remove(block);
    const uint32_t list = ListOfNew(block, insert);
    const bool has_parent = insert.parent != block && lists_.ListOf(insert.parent) == list;
    ++tick_;
    if (has_parent) {
      lists_.AddBehind(insert.parent, block);
    } else {
      lists_.AddHot(list, block);
    }
    uses_[block] = {.tick = (has_parent ? uses_[insert.parent].tick : tick_) & kTickMask, .count = 0};
  }
  void OnAccess(BlockId block, int64_t /*now_ns*/) final {
    const uint32_t list = lists_.ListOf(block);
    if (list == BlockLists::kNoList) return;
    uses_[block] = {.tick = ++tick_ & kTickMask, .count = std::min(uses_[block].count + 1u, 3u) & 3};
    const uint32_t target = ListAfterUse(block, list);
    if (target == kStay) return;
    lists_.Remove(block);
    lists_.AddHot(target, block);
  }
  void OnHint(BlockId, const RetentionHint&, int64_t) final {}
  void OnErase(BlockId block, bool evicted) final {
    const uint32_t list = lists_.ListOf(block);
    if (list == BlockLists::kNoList) return;
    lists_.Remove(block);
    OnGone(block, list, evicted);
  }
  bool IsStale(BlockId block) const final { return ((tick_ - uses_[block].tick) & kTickMask) > kStaleTicks; }
  uint32_t Uses(BlockId block) const final {
    return lists_.ListOf(block) == BlockLists::kNoList ? 0 : uses_[block].count;
  }

 protected:
  static constexpr uint32_t kStay = 254;  // a list that there is not
  QueuePolicy(uint64_t max_blocks, uint32_t n_lists) : lists_(max_blocks, n_lists), uses_(max_blocks) {}

  virtual uint32_t ListOfNew(BlockId block, const Insert& insert) = 0;
  // kStay: stays where it is.
  virtual uint32_t ListAfterUse(BlockId block, uint32_t list) = 0;
  // It has left `list` and is in none.
  virtual void OnGone(BlockId block, uint32_t list, bool evicted) = 0;

  BlockLists lists_;

 private:
  static constexpr uint32_t kStaleTicks = 1024;
  static constexpr uint32_t kTickMask = (1u << 30) - 1;
  struct UseRecord {
    uint32_t tick : 30;  // of the last insertion or access
    uint32_t count : 2;  // accesses since the insertion, up to 3
  };
  LazyArray<UseRecord> uses_;
  uint32_t tick_ = 0;
};

}  // namespace terrace::tiering
