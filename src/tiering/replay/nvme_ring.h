// Copyright 2026 The Terrace Authors. SPDX-License-Identifier: Apache-2.0
//
// NvmeRing: the order in which blocks leave the NVMe tier, without the tier: a FIFO ring in which what
// was hit in the second half of its stay is written once more when its place is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace terrace::tiering {

// Blocks are numbers below distinct_blocks. Owner: a replayer. Threads: one.
class NvmeRing {
 public:
  NvmeRing(uint64_t capacity_blocks, uint32_t distinct_blocks);

  bool Contains(uint32_t block) const { return is_here_[block] != 0; }
  void Hit(uint32_t block) { is_hit_[block] = 1; }
  // REQUIRES: not here, capacity above 0.
  void Append(uint32_t block);

  // What is appended next takes the place of nothing.
  bool has_free_room() const { return ring_[head_] == kEmpty; }
  uint64_t writes() const { return writes_; }  // reinsertions included
  uint64_t reinsertions() const { return reinsertions_; }

 private:
  static constexpr uint32_t kEmpty = ~0u;
  // To the next place. Hits of the block that has half of its stay behind it are forgotten.
  void Advance();
  std::vector<uint32_t> ring_;
  size_t head_ = 0;
  std::vector<uint8_t> is_here_, is_hit_;
  uint64_t writes_ = 0, reinsertions_ = 0;
};

}  // namespace terrace::tiering
