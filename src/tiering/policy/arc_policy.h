// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// ArcPolicy: ARC (Megiddo and Modha, FAST'03): one list for blocks used once, one for others, and a share
// between them that follows which one's lost blocks are asked for again.
#pragma once

#include "tiering/policy/ghost_list.h"
#include "tiering/policy/queue_policy.h"

namespace terrace::tiering {

// Remembers as many blocks that left as it holds.
class ArcPolicy final : public QueuePolicy {
 public:
  ArcPolicy(uint64_t max_blocks, uint64_t expected_blocks)
      : QueuePolicy(max_blocks, 2),
        lost_once_(std::max(max_blocks, expected_blocks)),
        lost_often_(std::max(max_blocks, expected_blocks)),
        fingerprints_(max_blocks) {}

  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) override;
  Stats GetStats() const override { return {.name = "arc", .ghost_hits = ghost_hits_}; }

 protected:
  uint32_t ListOfNew(BlockId block, const Insert& insert) override;
  uint32_t ListAfterUse(BlockId, uint32_t) override { return kOften; }
  void OnGone(BlockId block, uint32_t list, bool evicted) override;

 private:
  static constexpr uint32_t kOnce = 0, kOften = 1;
  double Held() const { return static_cast<double>(lists_.Size(kOnce) + lists_.Size(kOften)); }

  GhostList lost_once_, lost_often_;
  LazyArray<uint64_t> fingerprints_;
  double once_target_ = 0;  // blocks
  uint64_t ghost_hits_ = 0;
};

}  // namespace terrace::tiering
