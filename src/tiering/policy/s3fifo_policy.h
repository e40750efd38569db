// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// S3FifoPolicy: S3-FIFO (Yang et al., SOSP'23): a small queue for newcomers, a main queue in which what
// was used goes round, and a memory of what left the small one.
#pragma once

#include "tiering/policy/ghost_list.h"
#include "tiering/policy/queue_policy.h"

namespace terrace::tiering {

// The small queue has a tenth of what is held. The memory has four times as many as the main queue (the paper
// has one): rests between uses are long here, and it gains up to five points by it.
class S3FifoPolicy final : public QueuePolicy {
 public:
  S3FifoPolicy(uint64_t max_blocks, uint64_t expected_blocks)
      : QueuePolicy(max_blocks, 2), ghosts_(std::max(max_blocks, expected_blocks)), records_(max_blocks) {}

  BlockId Victim(absl::FunctionRef<bool(BlockId)> allowed, int64_t now_ns) override;
  Stats GetStats() const override { return {.name = "s3fifo", .ghost_hits = ghost_hits_}; }

 protected:
  uint32_t ListOfNew(BlockId block, const Insert& insert) override;
  uint32_t ListAfterUse(BlockId block, uint32_t list) override;
  void OnGone(BlockId block, uint32_t list, bool evicted) override;

 private:
  static constexpr uint32_t kSmall = 0, kMain = 1;
  struct Record {
    uint64_t fingerprint;
    uint8_t frequency;  // up to 3
  };
  // Moves what was used out of the small queue and round the main one, up to a number of blocks.
  BlockId FindIn(uint32_t list, absl::FunctionRef<bool(BlockId)> allowed);

  GhostList ghosts_;
  LazyArray<Record> records_;
  uint64_t ghost_hits_ = 0;
};

}  // namespace terrace::tiering
