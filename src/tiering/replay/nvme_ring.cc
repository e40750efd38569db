// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
#include "tiering/replay/nvme_ring.h"

namespace terrace::tiering {

NvmeRing::NvmeRing(uint64_t capacity_blocks, uint32_t distinct_blocks)
    : ring_(capacity_blocks, kEmpty), is_here_(distinct_blocks, 0), is_hit_(distinct_blocks, 0) {}

void NvmeRing::Advance() {
  const uint32_t half_way = ring_[(head_ + ring_.size() / 2) % ring_.size()];
  if (half_way != kEmpty) is_hit_[half_way] = 0;
  head_ = head_ + 1 == ring_.size() ? 0 : head_ + 1;
  ++writes_;
}

void NvmeRing::Append(uint32_t block) {
  // Reading the oldest block and writing it at the head is the same as leaving it and going on.
  while (ring_[head_] != kEmpty && is_hit_[ring_[head_]] != 0) {
    is_hit_[ring_[head_]] = 0;
    Advance();
    ++reinsertions_;
  }
  if (ring_[head_] != kEmpty) is_here_[ring_[head_]] = 0;
  ring_[head_] = block;
  is_here_[block] = 1;
  is_hit_[block] = 0;
  Advance();
}

}  // namespace terrace::tiering
