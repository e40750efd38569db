// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// LruPolicy: least recently used goes first; a chain goes tail first, because its accesses are reported
// tail first and a child is inserted just behind its parent.
#pragma once

#include <cstdint>

#include "kvstore/base/lazy_array.h"
#include "tiering/policy/eviction_policy.h"

namespace terrace::tiering {

// 12 bytes a block. Victim looks at kMaxLook blocks at most: what is not allowed (pinned) is hot and so
// rarely stands at the cold end.
class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(uint64_t capacity);

  void OnInsert(BlockId block, const Insert& insert, int64_t now_ns) override;
  void OnAccess(BlockId block, int64_t now_ns) override;
  void OnHint(BlockId, const RetentionHint&, int64_t) override {}
  void OnErase(BlockId block, bool evicted) override;
  bool IsStale(BlockId block) const override;
  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) override;
  uint32_t Uses(BlockId block) const override;
  Stats GetStats() const override { return {.name = "lru"}; }

 private:
  static constexpr int kMaxLook = 65536;
  static constexpr uint32_t kStaleTicks = 1024;
  static constexpr uint32_t kTickMask = (1u << 30) - 1;
  struct Node {
    uint32_t hotter, colder;  // node numbers; 0 is the list's head
    uint32_t tick : 30;       // of the last insertion or access
    uint32_t uses : 2;        // accesses since the insertion, up to 3
  };
  bool In(uint32_t node) const { return nodes_[nodes_[node].hotter].colder == node; }
  void LinkBehind(uint32_t node, uint32_t hotter);
  void Unlink(uint32_t node);

  // Node n + 1 is block n. Node 0 is head and tail: its colder is the hottest block, its hotter the coldest.
  LazyArray<Node> nodes_;
  uint32_t tick_ = 0;
};

}  // namespace terrace::tiering
