// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// LruPolicy: least recently used goes first; a chain goes tail first, because its accesses are reported
// tail first and a child is inserted just behind its parent.
#pragma once

#include "tiering/policy/queue_policy.h"

namespace terrace::tiering {

class LruPolicy final : public QueuePolicy {
 public:
  explicit LruPolicy(uint64_t max_blocks) : QueuePolicy(max_blocks, 1) {}

  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) override {
    (void)now_ns;
    return lists_.FindCold(0, allowed);
  }
  Stats GetStats() const override { return {.name = "lru"}; }

 protected:
  uint32_t ListOfNew(BlockId, const Insert&) override { return 0; }
  uint32_t ListAfterUse(BlockId, uint32_t) override { return 0; }
  void OnGone(BlockId, uint32_t, bool) override {}
};

}  // namespace terrace::tiering
